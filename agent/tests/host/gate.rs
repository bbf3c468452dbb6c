//! Logging in through the gate: nothing is different but for the patch command.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tokio::task::JoinSet;

use crate::patch::{Watching, archive, sha512};
use crate::sshd::{Sshd, noise, said, write};

#[tokio::test]
async fn commands_give_their_output_and_exit_code_exactly() {
    let sshd = Sshd::start().await;
    for (command, output, code) in [
        ("sh -c 'echo x; exit 3'", "x\n", 3),
        (
            "printf '%s|' \"two words\" 'it'\\''s' $((1+1)) \\$HOME",
            "two words|it's|2|$HOME|",
            0,
        ),
        (
            "echo /usr/share/base-files/dot.*",
            "/usr/share/base-files/dot.bashrc /usr/share/base-files/dot.profile /usr/share/base-files/dot.profile.md5sums\n",
            0,
        ),
        ("printf 'no newline'", "no newline", 0),
        ("echo out; echo err >&2; false", "out\nerr\n", 1),
        ("true", "", 0),
        ("no-such-program-at-all 2>/dev/null", "", 127),
        (
            "echo a | tr a b; test -z \"$SHELLOPTS_\" && cat <<< here",
            "b\nhere\n",
            0,
        ),
        ("/bin/ping -c 1 -n -q 127.0.0.1 > /dev/null", "", 0),
    ] {
        assert_eq!(sshd.says(command).await, (output.to_owned(), code), "{command}");
    }
    // Bytes that are no UTF-8, both ways.
    let cat = sshd
        .ssh(&[])
        .arg("cat")
        .stdin(b"a\xff\0b".as_slice())
        .run_to_exit()
        .await
        .unwrap();
    assert_eq!(cat.stdout, b"a\xff\0b");
    // Who is killed says so.
    assert_ne!(sshd.says("kill -TERM $$").await.1, 0);
}

#[tokio::test]
async fn a_login_without_a_command_is_a_shell_on_its_terminal() {
    let sshd = Sshd::start().await;
    let on_terminal = sshd
        .ssh(&["-tt"])
        .stdin("tty\nshopt -q login_shell && echo login; exit 7\n");
    let (text, code) = said(&on_terminal.run_to_exit().await.unwrap());
    assert!(text.contains("/dev/pts/") && text.contains("login\r\n"), "{text}");
    assert_eq!(code, 7, "{text}");
    let piped = sshd.ssh(&["-T"]).stdin("echo from a pipe; exit 4\n");
    assert_eq!(
        said(&piped.run_to_exit().await.unwrap()),
        ("from a pipe\n".to_owned(), 4)
    );
    // Nobody stands between: the shell is the child of sshd.
    let parent = sshd.says("cat /proc/$PPID/comm").await.0;
    assert!(parent.starts_with("sshd"), "{parent}");
}

#[tokio::test]
async fn files_are_copied_in_every_way_that_clients_know() {
    let sshd = Sshd::start().await;
    let there = tempfile::tempdir().unwrap();
    let file = there.path().join("a file");
    noise(&file, 3_000_000);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let file = file.to_str().unwrap();
    let back = there.path().join("back");
    for (protocol, from_vm) in [
        ("-O", "vm:/var/cache/cloud/a\\ file"),
        ("-s", "vm:/var/cache/cloud/a file"),
    ] {
        assert_eq!(
            sshd.scp(&[protocol, file, "vm:/var/cache/cloud/"]).await,
            (String::new(), 0)
        );
        let arrived = sshd.path("/var/cache/cloud/a file");
        assert_eq!(fs::metadata(&arrived).unwrap().permissions().mode() & 0o777, 0o755);
        let fetched = sshd.scp(&[protocol, from_vm, back.to_str().unwrap()]).await;
        assert_eq!(fetched, (String::new(), 0));
        assert!(fs::read(file).unwrap() == fs::read(&back).unwrap());
        fs::remove_file(&arrived).unwrap();
        fs::remove_file(&back).unwrap();
    }

    // CloudStack's own client speaks the old protocol by itself: a name and a size, the bytes, a zero.
    let uploads = sshd.path("/var/cache/cloud").display().to_string();
    let line = format!("scp -t -d {uploads}/");
    let sent = sshd
        .ssh(&[])
        .arg(line)
        .stdin("C0755 6 cmdline.x\nhello\n\0")
        .run_to_exit()
        .await
        .unwrap();
    assert_eq!(
        (sent.stdout.as_slice(), sent.status.code()),
        (b"\0\0\0".as_slice(), Some(0))
    );
    let arrived = sshd.path("/var/cache/cloud/cmdline.x");
    assert_eq!(fs::read_to_string(&arrived).unwrap(), "hello\n");
    assert_eq!(fs::metadata(&arrived).unwrap().permissions().mode() & 0o777, 0o755);
    let fetch = sshd.ssh(&[]).arg(format!("scp -f {uploads}/cmdline.x")).stdin("\0\0\0");
    assert_eq!(
        fetch.run_to_exit().await.unwrap().stdout,
        b"C0755 6 cmdline.x\nhello\n\0"
    );
}

#[tokio::test]
async fn a_client_that_knows_only_what_cloudstacks_does_logs_in() {
    let sshd = Sshd::start().await;
    let options = [
        "-o",
        "Ciphers=aes128-ctr",
        "-o",
        "MACs=hmac-sha2-256",
        "-o",
        "KexAlgorithms=ecdh-sha2-nistp256",
    ];
    let said_true = sshd.ssh(&options).arg("echo true").run_to_exit().await.unwrap();
    assert_eq!(said(&said_true), ("true\n".to_owned(), 0));
}

#[tokio::test]
async fn fifty_clients_log_in_at_once() {
    let sshd = Sshd::start().await;
    let mut clients = JoinSet::new();
    for number in 0..50 {
        let login = sshd.ssh(&[]).arg(format!("echo {number}"));
        clients.spawn(async move { (number, login.run_to_exit().await.unwrap()) });
    }
    while let Some(done) = clients.join_next().await {
        let (number, exited) = done.unwrap();
        assert_eq!(said(&exited), (format!("{number}\n"), 0));
    }
}

#[tokio::test]
async fn a_live_patch_takes_the_scripts_and_runs_none() {
    let sshd = Sshd::start().await;
    let host = tempfile::tempdir().unwrap();
    let ran = host.path().join("ran");
    let path = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    noise(&host.path().join("agent.zip"), 100_000);
    write(
        &host.path().join("patch-sysvms.sh"),
        format!("#!/bin/bash\ntouch {}\nexit 1\n", ran.display()),
    );
    archive(&host.path().join("cloud-scripts.tgz"), "first").await;
    let digest = sha512(&host.path().join("cloud-scripts.tgz")).await;
    for patch in [
        "/var/cache/cloud/patch-sysvms.sh",
        "/bin/bash /var/cache/cloud/patch-sysvms.sh",
    ] {
        let names = ["agent.zip", "cloud-scripts.tgz", "patch-sysvms.sh"].map(path);
        let [zip, tgz, script] = names.each_ref().map(String::as_str);
        assert_eq!(
            sshd.scp(&["-O", zip, tgz, script, "vm:/var/cache/cloud/"]).await,
            (String::new(), 0)
        );
        // The second time nothing has been uploaded.
        for _ in 0..2 {
            assert_eq!(sshd.says(patch).await, (format!("version:{digest} \n"), 0));
        }
        let left: Vec<_> = fs::read_dir(sshd.path("/var/cache/cloud"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["cloud-scripts-signature"]);
        assert!(!ran.exists(), "the uploaded script was executed");
    }

    // Half an upload is no patch, and the host is told.
    let whole = fs::read(host.path().join("cloud-scripts.tgz")).unwrap();
    write(
        &sshd.path("/var/cache/cloud/cloud-scripts.tgz"),
        &whole[..whole.len() / 2],
    );
    let (text, code) = sshd.says("/var/cache/cloud/patch-sysvms.sh").await;
    assert!(text.contains("is not complete"), "{text}");
    assert_eq!(code, 1);
}

#[tokio::test]
async fn live_patches_and_the_daemon_may_all_come_at_once() {
    let sshd = Sshd::start().await;
    let daemon = Watching::start(sshd.vm.path());
    daemon.is_watching().await;
    let host = tempfile::tempdir().unwrap();
    let tgz = host.path().join("cloud-scripts.tgz");
    for round in ["one", "two"] {
        archive(&tgz, round).await;
        let digest = sha512(&tgz).await;
        let uploaded = sshd.scp(&["-O", tgz.to_str().unwrap(), "vm:/var/cache/cloud/"]).await;
        assert_eq!(uploaded, (String::new(), 0));
        let mut patches = JoinSet::new();
        for _ in 0..5 {
            let patch = sshd.ssh(&[]).arg("/var/cache/cloud/patch-sysvms.sh");
            patches.spawn(async move { said(&patch.run_to_exit().await.unwrap()) });
        }
        for answer in patches.join_all().await {
            assert_eq!(answer, (format!("version:{digest} \n"), 0));
        }
    }
}
