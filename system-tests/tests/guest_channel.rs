//! The guest channel of a real VM, before it has a network: what its host reads there and may ask.

use std::time::Duration;

use hypervisor::guest_channel::{BootProgress, CheckOutcome, Message, Outcome, Request};
use serde_json::json;
use system_tests::vm::guest_channel::{GuestChannel, PORT};
use system_tests::vm::{Format, Nic, Vm};

/// From the start of QEMU, under emulation on a busy machine.
const BOOT: Duration = Duration::from_mins(6);
/// For something to happen in a VM that runs.
const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_host_learns_over_the_channel_why_a_vm_is_not_up_and_ends_it() {
    let vm = Vm::new(Format::Qcow2)
        .nic(Nic::unplugged("02:00:4c:9f:00:05"))
        .port(PORT)
        .start()
        .await
        .unwrap();
    let mut host = GuestChannel::connect(&vm).await.unwrap();

    // No boot arguments at all: it waits for them, and says so.
    let waits = |progress: &BootProgress| {
        progress
            .steps
            .iter()
            .any(|step| step.step == "line" && step.outcome == Outcome::Waiting)
    };
    let progress = host.boot_until(BOOT, waits).await.unwrap();
    assert!(!progress.ready);
    assert!(progress.problem.unwrap().starts_with("boot arguments: "));
    let beat = host.heartbeat().await.unwrap();
    assert!(beat.free_ram_mib > 100, "{beat:?}");
    assert!(beat.memory.mem_total > 400_000, "{beat:?}");
    let name = host.next(LIMIT, |message| match message {
        Message::HostName(name) => Some(name.clone()),
        _ => None,
    });
    assert_eq!(name.await.unwrap(), "sysvm");

    let report = host.run_check(1).await.unwrap();
    assert_eq!(report.outcome, CheckOutcome::Error);
    let line = report.findings.iter().find(|finding| finding.check == "line").unwrap();
    assert_eq!(line.what, "the host has not given any boot arguments");
    assert!(line.todo.is_some());

    // Bad ones: every problem is told.
    vm.agent_up(LIMIT).await.unwrap();
    host.forget();
    vm.pass_cmdline("type=consoleproxy name=v-2-VM guid=Proxy.2 eth1ip=10.0.0.300 vncport=99999")
        .await
        .unwrap();
    let has_failed = |progress: &BootProgress| {
        progress
            .steps
            .iter()
            .any(|step| step.step == "arguments" && step.outcome == Outcome::Failed)
    };
    let progress = host.boot_until(LIMIT, has_failed).await.unwrap();
    let problem = progress.problem.unwrap();
    for wrong in ["host: missing", "eth1ip=\"10.0.0.300\"", "vncport=\"99999\""] {
        assert!(problem.contains(wrong), "{wrong}: {problem}");
    }

    // A host that goes and comes back, and one that talks nonsense.
    drop(host);
    let mut host = GuestChannel::connect(&vm).await.unwrap();
    host.boot_until(LIMIT, has_failed).await.unwrap();
    host.send_bytes(b"nonsense\n").await.unwrap();
    let reason = host.next(LIMIT, |message| match message {
        Message::Error { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    let reason = reason.await.unwrap();
    assert!(reason.contains("not a message"), "{reason}");
    let echo = json!({"n": 7}).as_object().unwrap().clone();
    host.send(&Request::Echo(echo.clone())).await.unwrap();
    let echoed = host.next(LIMIT, |message| match message {
        Message::Echo(echoed) => Some(echoed.clone()),
        _ => None,
    });
    assert_eq!(echoed.await.unwrap(), echo);

    // The clock, and everything that helps to find a fault.
    let moved = host.set_time(1_900_000_000_000).await.unwrap();
    assert!(moved > 0);
    assert!(vm.text(&["date", "+%s"]).await.unwrap().starts_with("19000"));
    let text = host.diagnostics(2).await.unwrap();
    for part in [
        "==== agent check\n",
        "table inet sysvm",
        "Guest channel",
        "==== ip rule\n0:",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }

    host.shut_down().await.unwrap();
    let goes = |message: &Message| (*message == Message::SessionShutdown).then_some(());
    host.next(LIMIT, goes).await.unwrap();
    vm.ended(LIMIT).await.unwrap();
}
