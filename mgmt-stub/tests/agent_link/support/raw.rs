//! An agent's end of a link that does exactly what a test says.

use agent::link::{Link, LinkError};
use agent::trust::{TrustUnknown, client_config};
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::packet::{Packet, Request, Response};
use protocol::session::{StartupCommand, StartupSecondaryStorageCommand};

use super::{LIMIT, TestServer, until};

pub(crate) async fn connect(server: &TestServer) -> Link {
    let tls = client_config(None, TrustUnknown::Accept).unwrap();
    Link::open("127.0.0.1", server.address.port(), tls, LIMIT, LIMIT)
        .await
        .unwrap()
}

pub(crate) async fn send(link: &mut Link, request: &Request) {
    link.send(&request.encode(Charset::Utf8).unwrap()).unwrap();
    link.drain().await.unwrap();
}

pub(crate) async fn receive(link: &mut Link) -> Result<Packet, LinkError> {
    loop {
        if let Some(message) = tokio::time::timeout(LIMIT, link.next())
            .await
            .expect("something comes")?
        {
            return Ok(Packet::decode(&message).unwrap());
        }
    }
}

pub(crate) fn startup(number: u32) -> Request {
    let startup = StartupCommand {
        data_center: Some("1".into()),
        guid: Some(format!("s-{number}-VM-NfsSecondaryStorageResource")),
        name: Some(format!("s-{number}-VM")),
        ..StartupCommand::default()
    };
    Request::startup(0, -1, Command::new(StartupSecondaryStorageCommand { startup }))
}

/// Starts up and answers everything: the host is Up then.
pub(crate) async fn register(server: &TestServer, link: &mut Link, number: u32) {
    send(link, &startup(number)).await;
    answer_until_ready(link).await;
    until("the host is Up", || async {
        let hosts = server.store.hosts().await.unwrap();
        hosts
            .iter()
            .any(|host| host.name == format!("s-{number}-VM") && server.agents.is_up(host.id))
    })
    .await;
}

/// Answers everything up to the second ReadyCommand, which is the last of the set-up.
pub(crate) async fn answer_until_ready(link: &mut Link) {
    loop {
        let Packet::Request(request) = receive(link).await.unwrap() else {
            continue;
        };
        let response: Response = request.response(vec![Answer::success()]);
        link.send(&response.encode(Charset::Utf8).unwrap()).unwrap();
        if matches!(&request.commands[0].body, CommandBody::Ready(ready) if ready.arch.is_some()) {
            return link.drain().await.unwrap();
        }
    }
}
