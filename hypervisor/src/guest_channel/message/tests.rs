//! What a guest may say, and what it had better not.

use proptest::prelude::*;

use super::*;

fn parse(value: &Value) -> Message {
    Message::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn every_message_of_the_manual_is_read() {
    let progress = json!({"__name__": "boot-progress", "ready": false, "problem": "boot arguments: none", "steps": [
        {"step": "line", "outcome": "waiting", "at_ms": 8123, "detail": "none"}], "newer": 1});
    assert_eq!(
        parse(&progress),
        Message::BootProgress(BootProgress {
            ready: false,
            problem: Some("boot arguments: none".into()),
            steps: vec![Step {
                step: "line".into(),
                outcome: Outcome::Waiting,
                at_ms: 8123,
                detail: "none".into()
            }]
        })
    );
    let state = json!({"__name__": "agent-state", "link": null});
    assert_eq!(parse(&state), Message::AgentState(None));
    let state = json!({"__name__": "agent-state", "link": {"state": "connecting", "server": "172.31.1.1:8250",
        "since": 1_800_000_000, "last_error": "no route", "next_attempt": null, "attempts": 3, "links": 0}});
    let Message::AgentState(Some(link)) = parse(&state) else {
        panic!("no link")
    };
    assert_eq!((link.state, link.attempts), (LinkState::Connecting, 3));
    assert_eq!(link.last_error.as_deref(), Some("no route"));
    let beat = json!({"__name__": "heartbeat", "free-ram": "312", "memory-stat": {"mem_total": 500_000, "other": 1},
        "apiVersion": 0, "uptime-ms": 9000, "counts": {"unknown": 1, "bad": 2, "dropped": 3}});
    let Message::Heartbeat(beat) = parse(&beat) else {
        panic!("no heartbeat")
    };
    assert_eq!((beat.free_ram_mib, beat.memory.mem_total), (312, 500_000));
    assert_eq!((beat.counts.unknown, beat.counts.bad, beat.counts.dropped), (1, 2, 3));
    let disks = json!({"__name__": "disks-usage", "disks": [{"path": "/", "fs": "ext4", "total": "5", "used": "4"}]});
    let Message::DisksUsage(disks) = parse(&disks) else {
        panic!("no disks")
    };
    assert_eq!((disks[0].total, disks[0].used), (5, 4));
    let interfaces = json!({"__name__": "network-interfaces", "interfaces": [
        {"name": "eth0", "hw": "02:00:00:00:00:01", "inet": ["169.254.0.2"], "inet6": []}]});
    let Message::NetworkInterfaces(interfaces) = parse(&interfaces) else {
        panic!("no interfaces")
    };
    assert_eq!(interfaces[0].inet, ["169.254.0.2"]);
    let result = json!({"__name__": "check-result", "id": 4, "report": {"outcome": "error", "name": null, "took_ms": 1,
        "findings": [{"check": "line", "outcome": "error", "what": "none", "todo": "pass one"}]}});
    let Message::CheckResult { id: 4, report } = parse(&result) else {
        panic!("no report")
    };
    assert_eq!(report.findings[0].todo.as_deref(), Some("pass one"));
    let piece = json!({"__name__": "diagnostics", "id": 1, "index": 0, "data": "aGk=", "last": true});
    let wanted = Message::Diagnostics {
        id: 1,
        index: 0,
        data: b"hi".to_vec(),
        last: true,
    };
    assert_eq!(parse(&piece), wanted);
    for (message, wanted) in [
        (
            json!({"__name__": "host-name", "name": "v-2-VM"}),
            Message::HostName("v-2-VM".into()),
        ),
        (
            json!({"__name__": "os-version", "version": "6.1"}),
            Message::OsVersion("6.1".into()),
        ),
        (
            json!({"__name__": "number-of-cpus", "count": 2}),
            Message::NumberOfCpus(2),
        ),
        (
            json!({"__name__": "applications", "applications": ["a-1"]}),
            Message::Applications(vec!["a-1".into()]),
        ),
        (
            json!({"__name__": "time-set", "moved-ms": -3}),
            Message::TimeSet { moved_ms: -3 },
        ),
        (json!({"__name__": "session-shutdown"}), Message::SessionShutdown),
        (json!({"__name__": "later"}), Message::Unknown { name: "later".into() }),
    ] {
        assert_eq!(parse(&message), wanted);
    }
    let down = json!({"__name__": "shutting-down", "timeout": 5, "reboot": true});
    let wanted = Message::ShuttingDown {
        timeout: 5,
        reboot: true,
    };
    assert_eq!(parse(&down), wanted);
    let error = json!({"__name__": "error", "message": "echo", "reason": "no"});
    let wanted = Message::Error {
        message: Some("echo".into()),
        reason: "no".into(),
    };
    assert_eq!(parse(&error), wanted);
}

#[test]
fn words_of_a_guest_do_nothing() {
    let name = parse(&json!({"__name__": "host-name", "name": "a\u{1b}[2J\r\u{202e}b"}));
    assert_eq!(name, Message::HostName("a\u{fffd}[2J\u{fffd}\u{fffd}b".into()));
}

#[test]
fn what_is_wrong_with_a_line_is_told() {
    let error = Message::parse(b"{\"__name__\": \"number-of-cpus\", \"count\": \"\x07\"}").unwrap_err();
    assert!(
        error.why.starts_with("control character") || error.why.contains("count"),
        "{error}"
    );
    let error = Message::parse(b"{\"name\": 1}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a message of the guest channel (missing field `__name__`): \"{\\\"name\\\": 1}\""
    );
}

#[test]
fn requests_are_as_the_manual_has_them() {
    let echo = json!({"n": 7}).as_object().unwrap().clone();
    let shutdown = Request::Shutdown {
        timeout: 3,
        message: "bye".into(),
        reboot: false,
    };
    for (request, wanted) in [
        (Request::Refresh, json!({"__name__": "refresh"})),
        (Request::Echo(echo), json!({"__name__": "echo", "n": 7})),
        (
            shutdown,
            json!({"__name__": "shutdown", "timeout": 3, "message": "bye", "reboot": false}),
        ),
        (
            Request::SetTime { milliseconds: 1 },
            json!({"__name__": "set-time", "milliseconds": 1}),
        ),
        (Request::RunCheck { id: 1 }, json!({"__name__": "run-check", "id": 1})),
        (
            Request::CollectDiagnostics { id: 2 },
            json!({"__name__": "collect-diagnostics", "id": 2}),
        ),
    ] {
        let line = request.line();
        assert!(line.ends_with('\n'));
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), wanted);
    }
}

const NAMES: &str = "boot-progress|agent-state|heartbeat|host-name|os-version|number-of-cpus|applications|\
                     network-interfaces|disks-usage|echo|check-result|diagnostics|time-set|shutting-down|\
                     session-shutdown|error|[a-z-]{0,20}";
const MEMBERS: &str = "ready|problem|steps|link|free-ram|memory-stat|uptime-ms|counts|name|version|count|\
                       applications|interfaces|disks|id|report|index|data|last|moved-ms|timeout|reboot|message|reason";

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(MEMBERS, inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn noise_is_an_error_and_no_panic(noise: Vec<u8>) {
        drop(Message::parse(&noise));
    }

    #[test]
    fn a_hostile_guest_is_an_error_and_no_panic(name in NAMES, members in prop::collection::btree_map(MEMBERS, value(), 0..6)) {
        let mut message: Map<String, Value> = members.into_iter().collect();
        message.insert("__name__".into(), name.into());
        let line = Value::Object(message).to_string();
        if let Err(error) = Message::parse(line.as_bytes()) {
            prop_assert!(!error.to_string().chars().any(|letter| letter.is_control() && letter != '\n'));
            prop_assert!(error.line.chars().count() <= MAX_SHOWN);
        }
    }
}
