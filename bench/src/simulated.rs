//! A light agent: the real link and messages, and nothing behind them. It says who it is, answers whatever it is asked
//! as if it were done, and pings.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use agent::link::Link;
use anyhow::bail;
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::header::NO_ID;
use protocol::packet::{Packet, Request};
use protocol::session::{HostType, PingCommand, ReadyAnswer, StartupCommand, StartupProxyCommand};
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

/// For TCP and for TLS: a server that is busy with all the others is still a working server.
const CONNECT_LIMIT: Duration = Duration::from_mins(1);

/// ReadyCommands that make an agent Up: the first changes the host's status, the second ends the set-up.
const READY_COMMANDS: u32 = 2;

/// What all agents share.
pub(crate) struct Zone {
    pub(crate) port: u16,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) ping_interval: Duration,
    /// Agents that connect at the same time; the others wait.
    pub(crate) connecting: Semaphore,
    pub(crate) events: mpsc::Sender<Event>,
}

/// One agent.
pub(crate) struct Simulated {
    pub(crate) number: u32,
    pub(crate) host: Ipv4Addr,
    /// When to connect, at the earliest.
    pub(crate) starts: Instant,
    /// Its first ping, if it is connected by then; the others follow in intervals.
    pub(crate) first_ping: Instant,
}

/// What an agent sees.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has answered its last ReadyCommand.
    Up,
    /// Its ping was answered after so long.
    Pinged(Duration),
    /// It gave up.
    Lost { was_up: bool, error: anyhow::Error },
}

impl Simulated {
    /// Works until the link is lost.
    pub(crate) async fn live(self, zone: Arc<Zone>) {
        let mut was_up = false;
        let Err(error) = self.work(&zone, &mut was_up).await;
        let lost = Event::Lost { was_up, error };
        zone.events.send(lost).await.ok(); // nobody listens when the measurement is over
    }

    async fn work(&self, zone: &Zone, is_up: &mut bool) -> anyhow::Result<Never> {
        sleep_until(self.starts).await;
        let mut place = Some(zone.connecting.acquire().await?);
        let host = self.host.to_string();
        let opening = Link::open(&host, zone.port, Arc::clone(&zone.tls), CONNECT_LIMIT, CONNECT_LIMIT);
        let mut session = Session {
            link: opening.await?,
            host_id: NO_ID,
            sequence: 0,
            ready_commands: 0,
            pinged: None,
        };
        session.send(&Request::startup(0, NO_ID, self.startup()))?;

        let mut next_ping = self.first_ping;
        loop {
            tokio::select! {
                message = session.link.next() => {
                    if let Some(message) = message?
                        && let Some(event) = session.receive(&message)?
                    {
                        (*is_up, place) = (true, None); // the first event is Up
                        zone.events.send(event).await?;
                    }
                }
                () = sleep_until(next_ping) => {
                    next_ping += zone.ping_interval;
                    if place.is_none() {
                        session.ping()?;
                    }
                }
            }
        }
    }

    fn startup(&self) -> Command {
        let text = |text: &str| Some(text.to_owned());
        let [_, a, b, c] = self.number.to_be_bytes();
        Command::new(StartupProxyCommand {
            proxy_port: 443,
            proxy_vm_id: self.number.into(),
            startup: StartupCommand {
                kind: Some(HostType::ConsoleProxy),
                data_center: text("1"),
                pod: text("1"),
                guid: Some(format!("Proxy.{}-ConsoleProxyResource", self.number)),
                name: Some(format!("v-{}-VM", self.number)),
                version: text("4.23.0.0"),
                iqn: text("NoIqn"),
                public_ip_address: Some(format!("203.{a}.{b}.{c}")),
                public_netmask: text("255.0.0.0"),
                public_mac_address: Some(format!("1e:00:3c:{a:02x}:{b:02x}:{c:02x}")),
                private_ip_address: Some(format!("10.{a}.{b}.{c}")),
                private_mac_address: Some(format!("1e:00:3d:{a:02x}:{b:02x}:{c:02x}")),
                private_netmask: text("255.0.0.0"),
                storage_ip_address: Some(format!("10.{a}.{b}.{c}")),
                storage_mac_address: Some(format!("1e:00:3d:{a:02x}:{b:02x}:{c:02x}")),
                storage_netmask: text("255.0.0.0"),
                resource_name: text("ConsoleProxyResource"),
                ms_host_list: Some(format!("{}@static", self.host)),
                arch: text("x86_64"),
                ..StartupCommand::default()
            },
        })
    }
}

enum Never {}

struct Session {
    link: Link,
    host_id: i64,
    sequence: i64,
    ready_commands: u32,
    /// The ping that is not answered yet.
    pinged: Option<(i64, Instant)>,
}

impl Session {
    fn send(&mut self, request: &Request) -> anyhow::Result<()> {
        Ok(self.link.send(&request.encode(Charset::Ascii)?)?)
    }

    /// One at a time: a server that does not keep up shows as latency, not as a flood.
    fn ping(&mut self) -> anyhow::Result<()> {
        if self.pinged.is_some() {
            return Ok(());
        }
        self.sequence += 1;
        let ping = PingCommand {
            host_type: Some(HostType::ConsoleProxy),
            host_id: self.host_id,
            ..PingCommand::default()
        };
        let request = Request::from_agent(self.sequence, self.host_id, Command::new(ping));
        self.pinged = Some((self.sequence, Instant::now()));
        self.send(&request)
    }

    fn receive(&mut self, message: &[u8]) -> anyhow::Result<Option<Event>> {
        match Packet::decode(message)? {
            Packet::Request(request) => self.request(&request),
            Packet::Response(response) => {
                let answered = self
                    .pinged
                    .take_if(|(sequence, _)| *sequence == response.header.sequence);
                Ok(answered.map(|(_, since)| Event::Pinged(since.elapsed())))
            }
        }
    }

    fn request(&mut self, request: &Request) -> anyhow::Result<Option<Event>> {
        let before = self.ready_commands;
        let answers = request.commands.iter().map(|command| self.carry_out(command));
        let answers: anyhow::Result<Vec<Answer>> = answers.collect();
        self.link.send(&request.response(answers?).encode(Charset::Ascii)?)?;
        let is_up = before < READY_COMMANDS && self.ready_commands >= READY_COMMANDS;
        Ok(is_up.then_some(Event::Up))
    }

    fn carry_out(&mut self, command: &Command) -> anyhow::Result<Answer> {
        let CommandBody::Ready(ready) = &command.body else {
            return Ok(Answer::success());
        };
        if let Some(reason) = &ready.details {
            bail!("refused: {reason}");
        }
        self.host_id = ready.host_id.unwrap_or(self.host_id);
        self.ready_commands += 1;
        Ok(Answer::new(ReadyAnswer::default()))
    }
}
