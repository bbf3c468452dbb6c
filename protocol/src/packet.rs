//! Requests and responses: messages with their commands and answers read (agent-protocol.md §2, §3).

use crate::answer::Answer;
use crate::class::BadBody;
use crate::command::Command;
use crate::gson::Charset;
use crate::header::{Flags, Header, NO_ID};
use crate::message::{BadMessage, Body, Message};

/// A request or a response.
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    /// Asks.
    Request(Request),
    /// Answers.
    Response(Response),
}

/// Commands for the other end.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Who asks, and whom.
    pub header: Header,
    /// What is asked, in order.
    pub commands: Vec<Command>,
}

/// Answers to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Copied from the request but for the direction.
    pub header: Header,
    /// One for each command, in order.
    pub answers: Vec<Answer>,
}

/// A message that nobody can answer. The connection stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The message itself.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// Its body.
    #[error("sequence {sequence}: {problem}")]
    Body {
        /// Of the request or response.
        sequence: i64,
        /// What is wrong.
        problem: BadBody,
    },
}

impl Packet {
    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Self, BadPacket> {
        Self::read(Message::decode(message)?)
    }

    /// Reads a message of a peer of whom only short ones are accepted.
    pub fn decode_up_to(message: &[u8], max_body: usize) -> Result<Self, BadPacket> {
        Self::read(Message::decode_up_to(message, max_body)?)
    }

    /// Reads the body of a message.
    pub fn read(message: Message) -> Result<Self, BadPacket> {
        let Message { header, body } = message;
        let bad = |problem| BadPacket::Body {
            sequence: header.sequence,
            problem,
        };
        if header.flags.contains(Flags::REQUEST) {
            let commands = match body {
                Body::Text(text) => Command::read_all(&text).map_err(bad)?,
                Body::Damaged(reason) => vec![Command::bad(reason)],
            };
            return Ok(Self::Request(Request { header, commands }));
        }
        let answers = match body {
            Body::Text(text) => Answer::read_all(&text).map_err(bad)?,
            Body::Damaged(reason) => return Err(bad(BadBody::Fatal(reason))),
        };
        Ok(Self::Response(Response { header, answers }))
    }
}

impl Request {
    /// A request of an agent (§4.8): commands are independent of each other and there is no server id.
    pub fn from_agent(sequence: i64, agent_id: i64, command: Command) -> Self {
        let flags = Flags::REQUEST | Flags::STOP_ON_ERROR;
        let flags = flags.with(Flags::IN_SEQUENCE, command.is_in_sequence());
        Self {
            header: Header {
                flags,
                sequence,
                mgmt_id: NO_ID,
                agent_id,
                via: agent_id,
            },
            commands: vec![command],
        }
    }

    /// The first message on a link (§4.1): the only request without STOP_ON_ERROR.
    pub fn startup(sequence: i64, agent_id: i64, command: Command) -> Self {
        let mut request = Self::from_agent(sequence, agent_id, command);
        request.header.flags = request.header.flags.with(Flags::STOP_ON_ERROR, false);
        request
    }

    /// A request of management server `mgmt_id` to a host.
    pub fn from_server(sequence: i64, mgmt_id: i64, host_id: i64, commands: Vec<Command>) -> Self {
        let flags = Flags::REQUEST | Flags::STOP_ON_ERROR | Flags::FROM_SERVER;
        let flags = flags.with(Flags::IN_SEQUENCE, commands.iter().any(Command::is_in_sequence));
        Self {
            header: Header {
                flags,
                sequence,
                mgmt_id,
                agent_id: host_id,
                via: host_id,
            },
            commands,
        }
    }

    /// Answers: everything copied, the direction inverted (§2 "Building a response").
    pub fn response(&self, answers: Vec<Answer>) -> Response {
        let flags = self
            .header
            .flags
            .with(Flags::REQUEST | Flags::CONTROL | Flags::COMPRESSED, false);
        Response {
            header: Header {
                flags: flags.toggled(Flags::FROM_SERVER),
                ..self.header
            },
            answers,
        }
    }

    /// The message as it travels.
    ///
    /// # Errors
    /// The body is longer than [`MAX_BODY`](crate::message::MAX_BODY).
    pub fn encode(&self, charset: Charset) -> Result<Vec<u8>, BadMessage> {
        Message::encode(self.header, &Command::write_all(&self.commands, charset))
    }
}

impl Response {
    /// What the server changes in its responses to agents: its own id, and the host the link belongs to.
    #[must_use]
    pub fn by_server(mut self, mgmt_id: i64, via: i64) -> Self {
        self.header.mgmt_id = mgmt_id;
        self.header.via = via;
        self
    }

    /// The message as it travels.
    ///
    /// # Errors
    /// The body is longer than [`MAX_BODY`](crate::message::MAX_BODY).
    pub fn encode(&self, charset: Charset) -> Result<Vec<u8>, BadMessage> {
        Message::encode(self.header, &Answer::write_all(&self.answers, charset))
    }
}
