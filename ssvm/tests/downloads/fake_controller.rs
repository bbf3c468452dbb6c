//! A management server's end of the agent link: connects agents, answers pings, asks what a test wants.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use platform::duplex::{Duplex, Progress};
use protocol::answer::{Answer, AnswerBody};
use protocol::channel::{Channel, Event};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::packet::{Packet, Request};
use protocol::secondary_storage::{DownloadAnswer, SecStorageSetupCommand, SecStorageVMSetupCommand};
use protocol::secret::Secret;
use protocol::session::{PingAnswer, ReadyCommand, StartupAnswer};
use protocol::transfer::{DataStoreTO, NfsTO};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

const SERVER_ID: i64 = 90_520_732_674_657;
const HOST_ID: i64 = 3;
const LIMIT: Duration = Duration::from_mins(1);

/// Asks whichever agent is connected.
#[derive(Clone)]
pub(crate) struct Controller {
    pub(crate) port: u16,
    questions: mpsc::Sender<(Command, oneshot::Sender<Answer>)>,
    /// Links that came up so far.
    links: watch::Receiver<u32>,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        platform::crypto::install();
        let key_pair = KeyPair::generate().unwrap();
        let made = CertificateParams::new(vec!["mgmt".to_owned()]).unwrap();
        let made = made.self_signed(&key_pair).unwrap();
        let key = PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into();
        let tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (questions, mut asked) = mpsc::channel(64);
        let (up, links) = watch::channel(0);
        let tls = Arc::new(tls);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let link = Link {
                    duplex: Duplex::new(stream),
                    channel: Channel::server(Arc::clone(&tls)).unwrap(),
                    waiting: HashMap::new(),
                    sequence: 1,
                };
                link.serve(&mut asked, &up).await;
            }
        });
        Self { port, questions, links }
    }

    /// Waits until an agent has connected `count` times.
    pub(crate) async fn connected(&mut self, count: u32) {
        let up = self.links.wait_for(|links| *links >= count);
        tokio::time::timeout(LIMIT, up)
            .await
            .expect("the agent connects")
            .unwrap();
    }

    /// The answer to a command.
    pub(crate) async fn ask(&self, command: impl Into<CommandBody>) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.questions.send((Command::new(command), answer)).await.unwrap();
        tokio::time::timeout(LIMIT, answered)
            .await
            .expect("an answer in time")
            .expect("the link holds")
    }

    /// The answer to one of the two download commands.
    pub(crate) async fn download(&self, command: impl Into<CommandBody>) -> DownloadAnswer {
        match self.ask(command).await.body {
            AnswerBody::Download(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// What a server sends first: a store, and the sites that downloads may reach.
    pub(crate) async fn set_up(&self, store: &str, sites: &[&str]) {
        let setup = SecStorageSetupCommand {
            store: Some(nfs(store)),
            sec_url: Some(store.to_owned()),
            post_upload_key: Some(Secret::new("upload-key".into())),
            ..SecStorageSetupCommand::default()
        };
        let answer = self.ask(setup).await;
        assert!(answer.result, "{answer:?}");
        let setup = SecStorageVMSetupCommand {
            allowed_internal_sites: Some(sites.iter().map(|site| (*site).to_owned()).collect()),
            copy_user_name: Some("cloud".into()),
            copy_password: Some(Secret::new("copy-password".into())),
        };
        let answer = self.ask(setup).await;
        assert!(answer.result, "{answer:?}");
    }
}

pub(crate) fn nfs(url: &str) -> DataStoreTO {
    DataStoreTO::Nfs(NfsTO {
        url: Some(url.to_owned()),
        ..NfsTO::default()
    })
}

struct Link {
    duplex: Duplex,
    channel: Channel,
    waiting: HashMap<i64, oneshot::Sender<Answer>>,
    sequence: i64,
}

impl Link {
    /// Until the agent is gone.
    async fn serve(mut self, asked: &mut mpsc::Receiver<(Command, oneshot::Sender<Answer>)>, up: &watch::Sender<u32>) {
        let mut is_ready = false;
        loop {
            while let Ok(Some(event)) = self.channel.receive(&mut self.duplex.input, &mut self.duplex.output) {
                let Event::Message(message) = event else { continue };
                match Packet::decode(&message).unwrap() {
                    Packet::Response(response) => {
                        let answer = response.answers.into_iter().next().unwrap();
                        if matches!(answer.body, AnswerBody::Ready(_)) {
                            is_ready = true;
                            up.send_modify(|links| *links += 1);
                        } else if let Some(waiting) = self.waiting.remove(&response.header.sequence) {
                            let _ = waiting.send(answer);
                        }
                    }
                    Packet::Request(request) => self.greet(&request),
                }
            }
            tokio::select! {
                progress = self.duplex.progress() => {
                    if !matches!(progress, Ok(Progress::Received | Progress::Sent)) {
                        return;
                    }
                }
                Some((command, answer)) = asked.recv(), if is_ready => {
                    self.sequence += 1;
                    self.waiting.insert(self.sequence, answer);
                    self.send(vec![command]);
                }
            }
        }
    }

    fn greet(&mut self, request: &Request) {
        let is_startup = matches!(request.commands[0].body, CommandBody::StartupSecondaryStorage(_));
        let answer = if is_startup {
            Answer::new(StartupAnswer {
                host_id: HOST_ID,
                ping_interval: 60,
                ..StartupAnswer::default()
            })
        } else {
            Answer::new(PingAnswer::default())
        };
        let response = request.response(vec![answer]).by_server(SERVER_ID, HOST_ID);
        let bytes = response.encode(Charset::Utf8).unwrap();
        self.channel.send(&bytes, &mut self.duplex.output).unwrap();
        if is_startup {
            self.send(vec![Command::new(ReadyCommand {
                host_id: Some(HOST_ID),
                ..ReadyCommand::default()
            })]);
        }
    }

    fn send(&mut self, commands: Vec<Command>) {
        let request = Request::from_server(self.sequence, SERVER_ID, HOST_ID, commands);
        let bytes = request.encode(Charset::Utf8).unwrap();
        self.channel.send(&bytes, &mut self.duplex.output).unwrap();
    }
}
