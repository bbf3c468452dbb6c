//! Who may see a screen.

use mgmt_stub::console::{Creator, NoConsole};
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::store::id::{AccountId, UserId, ZoneId};
use mgmt_stub::store::instance::InstanceType::{ConsoleProxy, User};
use mgmt_stub::store::instance::{Instance, NewInstance, Vnc};
use protocol::answer::{Answer, AnswerBody};
use protocol::console_proxy::{ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand};
use protocol::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::Value;

use crate::support::{TestZone, until};

pub(crate) async fn instance(zone: &TestZone, state: InstanceState) -> Instance {
    zone.store.create_instance(new_instance(state), None).await.unwrap()
}

pub(crate) fn new_instance(state: InstanceState) -> NewInstance {
    NewInstance {
        kind: User,
        name: Some("web-1".into()),
        display_name: None,
        suffix: String::new(),
        hypervisor: "External".into(),
        state,
        reason: String::new(),
        zone: ZoneId(1),
        pod: None,
        account: AccountId(1),
        role: None,
        os_type: None,
        public_ip: None,
        vnc: Some(Vnc {
            address: "127.0.0.1".into(),
            port: 5901,
            password: Secret::new("swordfish".into()),
        }),
    }
}

pub(crate) fn creator() -> Creator {
    Creator {
        account: AccountId(1),
        user: UserId(1),
        address: Some("192.0.2.7".into()),
    }
}

/// What somebody may try.
type Change = fn(&mut ConsoleAccessAuthenticationCommand);

/// Opens a token as a console proxy does.
pub(crate) async fn open(zone: &TestZone, token: &Secret<String>) -> Value {
    use base64::Engine;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let setting = async |name: &str| {
        let text = zone.store.setting(name).await.unwrap().unwrap();
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    };
    let key = setting("security.encryption.key").await;
    let key = ring::digest::digest(&ring::digest::SHA256, &key);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
    let mut sealed = BASE64_STANDARD.decode(token.expose()).unwrap();
    let nonce = Nonce::try_assume_unique_for_key(&sealed[..12]).unwrap();
    let additional = Aad::from(setting("security.encryption.iv").await);
    let opened = key.open_in_place(nonce, additional, &mut sealed[12..]).unwrap();
    serde_json::from_slice(opened).unwrap()
}

fn question(content: &Value) -> ConsoleAccessAuthenticationCommand {
    let text = |member: &str| content[member].as_str().map(str::to_owned);
    ConsoleAccessAuthenticationCommand {
        host: text("clientHostAddress"),
        port: Some(content["clientHostPort"].to_string()),
        vm_id: text("clientTag"),
        sid: text("clientHostPassword").map(Secret::new),
        ticket: text("ticket").map(Secret::new),
        session_uuid: text("sessionUuid"),
        client_address: Some("192.0.2.8".into()),
        is_reauthenticating: false,
    }
}

fn is_granted(answer: &Answer) -> bool {
    let AnswerBody::ConsoleAccessAuthentication(access) = &answer.body else {
        panic!("{answer:?}");
    };
    assert!(answer.result, "the question itself was answered");
    access.success
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_opens_once_for_who_has_its_token() {
    let zone = TestZone::start().await;
    let proxy = zone.up(ConsoleProxy).await;
    let vm = instance(&zone, InstanceState::Running).await;
    let consoles = &zone.zone.consoles;
    let endpoint = consoles.create(&vm, &creator(), Some("extra".into())).await.unwrap();
    let prefix = "http://127.0.0.1:6080/resource/noVNC/vnc.html?autoconnect=true&show_dot=true&port=6080&token=";
    assert!(
        endpoint.url.starts_with(prefix) && endpoint.url.ends_with("&extra=extra"),
        "{}",
        endpoint.url
    );
    assert_eq!((endpoint.host.as_str(), endpoint.port), ("127.0.0.1", 6080));
    assert!(!format!("{endpoint:?}").contains(endpoint.token.expose()) || endpoint.url.contains("token"));

    let content = open(&zone, &endpoint.token).await;
    assert_eq!(content["clientHostPassword"], "swordfish");
    assert_eq!(content["extraSecurityToken"], "extra");
    let session = content["sessionUuid"].as_str().unwrap().to_owned();
    until("the proxy is told", async || {
        zone.seen(&proxy).contains(&format!("ALLOW {session}\n")).then_some(())
    })
    .await;

    assert!(is_granted(&consoles.decide(question(&content)).await));
    assert!(!is_granted(&consoles.decide(question(&content)).await), "a second time");
    let sessions = zone.store.console_sessions().await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].client_address.as_deref(), Some("192.0.2.8"));
    assert_eq!(sessions[0].creator_address.as_deref(), Some("192.0.2.7"));

    // Its viewer may reconnect, and is told where the screen is now.
    let again = ConsoleAccessAuthenticationCommand {
        is_reauthenticating: true,
        ..question(&content)
    };
    let answer = consoles.decide(again).await;
    assert!(is_granted(&answer));
    assert!(matches!(answer.body, AnswerBody::ConsoleAccessAuthentication(access) if access.port == 5901));
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_with_one_token_and_one_gets_in() {
    let zone = TestZone::start().await;
    zone.up(ConsoleProxy).await;
    let vm = instance(&zone, InstanceState::Running).await;
    let endpoint = zone.zone.consoles.create(&vm, &creator(), None).await.unwrap();
    let content = open(&zone, &endpoint.token).await;
    let tries = (0..50).map(|_| {
        let (consoles, question) = (zone.zone.consoles.clone(), question(&content));
        tokio::spawn(async move { is_granted(&consoles.decide(question).await) })
    });
    let mut granted = 0;
    for attempt in tries.collect::<Vec<_>>() {
        granted += usize::from(attempt.await.unwrap());
    }
    assert_eq!(granted, 1);
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_about_a_token_must_be_right() {
    let zone = TestZone::start().await;
    zone.up(ConsoleProxy).await;
    let vm = instance(&zone, InstanceState::Running).await;
    let consoles = &zone.zone.consoles;
    let changes: [(&str, Change); 7] = [
        ("host", |question| question.host = Some("10.9.9.9".into())),
        ("port", |question| question.port = Some("5902".into())),
        ("sid", |question| question.sid = Some(Secret::new("other".into()))),
        ("instance", |question| {
            question.vm_id = Some("6d1f2a34-0b8e-4c5d-9e7f-112233445566".into());
        }),
        ("no instance", |question| question.vm_id = None),
        ("no ticket", |question| question.ticket = None),
        ("session", |question| {
            question.session_uuid = Some("0f0e0d0c-0b0a-4908-8706-050403020100".into());
        }),
    ];
    for (what, change) in changes {
        let endpoint = consoles.create(&vm, &creator(), None).await.unwrap();
        let mut changed = question(&open(&zone, &endpoint.token).await);
        change(&mut changed);
        assert!(!is_granted(&consoles.decide(changed).await), "{what}");
    }
    // The instance is gone.
    let endpoint = consoles.create(&vm, &creator(), None).await.unwrap();
    let content = open(&zone, &endpoint.token).await;
    zone.store.remove_instance(vm.id).await.unwrap();
    assert!(!is_granted(&consoles.decide(question(&content)).await));
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_console_without_a_running_instance_and_a_proxy_with_room() {
    let zone = TestZone::start_with(&[("consoleproxy.launch.max", "1"), ("consoleproxy.session.max", "2")]).await;
    let proxy = zone.up(ConsoleProxy).await;
    let stopped = instance(&zone, InstanceState::Stopped).await;
    let error = zone.zone.consoles.create(&stopped, &creator(), None).await.unwrap_err();
    assert!(matches!(error, NoConsole::State { .. }), "{error}");

    let hosts = zone.store.hosts().await.unwrap();
    let host = mgmt_stub::system_vms::host_of(&hosts, &proxy).unwrap();
    let report = |text: &str| ConsoleProxyLoadReportCommand {
        proxy_vm_id: proxy.id.0,
        load_info: Some(text.into()),
    };
    zone.zone.consoles.reported(host, &report(r#"{"connections":[{},{}]}"#));
    until("two sessions are counted", async || {
        (zone.store.instance(proxy.id).await.unwrap()?.active_sessions == 2).then_some(())
    })
    .await;
    let vm = Instance {
        state: InstanceState::Running,
        ..stopped
    };
    let error = zone.zone.consoles.create(&vm, &creator(), None).await.unwrap_err();
    let text = "Console access will be ready in a few minutes. Please try it again later.";
    assert_eq!(error.to_string(), text);

    zone.zone.consoles.reported(host, &report(r#"{"connections":[]}"#));
    until("there is room again", async || {
        zone.zone.consoles.create(&vm, &creator(), None).await.ok()
    })
    .await;
    let sessions = zone.store.console_sessions().await.unwrap();
    let removed = format!(r#"{{"connections":[],"removedSessions":["{}"]}}"#, sessions[0].uuid);
    zone.zone.consoles.reported(host, &report(&removed));
    until("the session has ended", async || {
        zone.store.console_sessions().await.unwrap()[0]
            .removed
            .is_some()
            .then_some(())
    })
    .await;
    zone.end().await;
}
