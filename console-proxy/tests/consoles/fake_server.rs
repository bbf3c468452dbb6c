//! A management server's end of the agent link, for the program as a whole.

use std::sync::Arc;

use platform::duplex::{Duplex, Progress};
use protocol::answer::{Answer, AnswerBody};
use protocol::channel::{Channel, Event};
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::{ConsoleAccessAuthenticationAnswer, ConsoleAccessAuthenticationCommand};
use protocol::gson::Charset;
use protocol::packet::{Packet, Request};
use protocol::session::{AgentControlAnswer, PingAnswer, ReadyCommand, StartupAnswer};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::proxy::LIMIT;

const SERVER_ID: i64 = 90_520_732_674_657;
const HOST_ID: i64 = 3;

pub(crate) struct FakeServer {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
}

pub(crate) struct FakeLink {
    duplex: Duplex,
    channel: Channel,
    sequence: i64,
    /// Who was asked for.
    pub(crate) asked: Vec<ConsoleAccessAuthenticationCommand>,
    /// Reports, in order.
    pub(crate) told: Vec<Value>,
}

impl FakeServer {
    pub(crate) async fn listen() -> Self {
        platform::crypto::install();
        let key_pair = KeyPair::generate().unwrap();
        let made = CertificateParams::new(vec!["mgmt".to_owned()])
            .unwrap()
            .self_signed(&key_pair)
            .unwrap();
        let key = PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into();
        let tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .unwrap();
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            tls: Arc::new(tls),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next link, ready. Answers also the port that the proxy says consoles have.
    pub(crate) async fn accept(&self) -> (FakeLink, i64) {
        let (stream, _) = timeout(LIMIT, self.listener.accept())
            .await
            .expect("the agent connects")
            .unwrap();
        let mut link = FakeLink {
            duplex: Duplex::new(stream),
            channel: Channel::server(Arc::clone(&self.tls)).unwrap(),
            sequence: 0,
            asked: Vec::new(),
            told: Vec::new(),
        };
        assert_eq!(link.event().await, Some(Event::Established));
        let startup = match link.packet().await {
            Some(Packet::Request(request)) => request,
            other => panic!("{other:?} where a startup command is expected"),
        };
        let CommandBody::StartupProxy(proxy) = &startup.commands[0].body else {
            panic!("{startup:?}")
        };
        let port = proxy.proxy_port;
        let answer = StartupAnswer {
            ping_interval: 60,
            ..StartupAnswer::default()
        };
        link.answer(&startup, Answer::new(answer)).await;
        let ready = ReadyCommand {
            host_id: Some(HOST_ID),
            ..ReadyCommand::default()
        };
        link.execute(ready).await;
        (link, port)
    }
}

impl FakeLink {
    async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self
                .channel
                .receive(&mut self.duplex.input, &mut self.duplex.output)
                .unwrap()
            {
                return Some(event);
            }
            if timeout(LIMIT, self.duplex.progress())
                .await
                .expect("something happens")
                .unwrap()
                == Progress::Closed
            {
                return None;
            }
        }
    }

    async fn packet(&mut self) -> Option<Packet> {
        match self.event().await? {
            Event::Message(message) => Some(Packet::decode(&message).unwrap()),
            Event::Established => panic!("established twice"),
        }
    }

    async fn send(&mut self, message: &[u8]) {
        self.channel.send(message, &mut self.duplex.output).unwrap();
        while !self.duplex.output.is_empty() {
            self.duplex.progress().await.unwrap();
        }
    }

    async fn answer(&mut self, request: &Request, answer: Answer) {
        let response = request.response(vec![answer]).by_server(SERVER_ID, HOST_ID);
        self.send(&response.encode(Charset::Utf8).unwrap()).await;
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn execute(&mut self, command: impl Into<CommandBody>) -> Answer {
        self.sequence += 1;
        let request = Request::from_server(self.sequence, SERVER_ID, HOST_ID, vec![Command::new(command)]);
        self.send(&request.encode(Charset::Utf8).unwrap()).await;
        loop {
            match self.packet().await.expect("the link stays") {
                Packet::Response(response) => return response.answers.into_iter().next().unwrap(),
                Packet::Request(request) => self.obey(&request).await,
            }
        }
    }

    /// Serves the agent until something is so, or the link is closed.
    pub(crate) async fn serve_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            match self.packet().await {
                Some(Packet::Request(request)) => self.obey(&request).await,
                Some(Packet::Response(response)) => panic!("{response:?}"),
                None => return,
            }
        }
    }

    async fn obey(&mut self, request: &Request) {
        let answer = match &request.commands[0].body {
            CommandBody::ConsoleAccessAuthentication(access) => {
                self.asked.push(access.clone());
                Answer::new(ConsoleAccessAuthenticationAnswer {
                    success: true,
                    ..ConsoleAccessAuthenticationAnswer::default()
                })
            }
            CommandBody::ConsoleProxyLoadReport(report) => {
                self.told
                    .push(serde_json::from_str(report.load_info.as_ref().unwrap()).unwrap());
                Answer::new(AnswerBody::AgentControl(AgentControlAnswer::default()))
            }
            CommandBody::Shutdown(_) => return,
            _ => Answer::new(PingAnswer::default()),
        };
        self.answer(request, answer).await;
    }
}
