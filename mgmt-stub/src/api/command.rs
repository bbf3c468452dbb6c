//! What a command is. One table of these dispatches, validates and describes itself (`listApis`).

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::ApiError;
use super::parameters::Parameters;
use super::session::Caller;
use crate::jobs::Work;
use crate::management::Management;
use crate::store::StoreError;
use crate::store::event::{EventState, Level, NewEvent};

/// An answer to come.
pub type Answering<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;

/// Of what a command has said already, without waiting for anything.
pub fn ready<T: Send + 'static>(said: Result<T, ApiError>) -> Answering<T> {
    Box::pin(std::future::ready(said))
}

/// One row of the table.
pub struct Command {
    /// As in `command=`.
    pub name: &'static str,
    /// What it does, for people.
    pub description: &'static str,
    /// What it takes, besides what all take.
    pub takes: &'static [Parameter],
    /// Fields of the object that it answers with.
    pub answers: &'static [Field],
    /// Type of the event of a job; others record events themselves.
    pub event: Option<&'static str>,
    /// Who may call it.
    pub who: Who,
    /// What it does.
    pub run: Run,
}

/// What a command does.
pub enum Run {
    /// Answers at once.
    Sync(fn(Call) -> Answering<Outcome>),
    /// Answers at once with a page of a list.
    List(fn(Call) -> Answering<Outcome>),
    /// Checks at once what it was told, and works later.
    Job(fn(Call) -> Answering<Job>),
}

/// Who may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Without proof of who it is.
    Anyone,
    User,
    Admin,
}

/// One parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parameter {
    /// Lower case.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Whether it must be there.
    pub is_required: bool,
    /// For people.
    pub description: &'static str,
}

/// Types of parameters and fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    /// The UUID of something that exists.
    Id,
    Flag,
    Number,
    Fraction,
    Date,
    /// Words with commas between them.
    List,
    /// UUIDs with commas between them.
    Ids,
    /// `name[0].key=…`.
    Map,
    /// An object inside of another.
    Object,
}

/// One field of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field(pub &'static str, pub Kind, pub &'static str);

/// A parameter that must be there.
pub const fn required(name: &'static str, kind: Kind, description: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        is_required: true,
        description,
    }
}

/// A parameter that may be absent.
pub const fn optional(name: &'static str, kind: Kind, description: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        is_required: false,
        description,
    }
}

impl Command {
    /// A command that answers at once.
    pub const fn sync(name: &'static str, description: &'static str, run: fn(Call) -> Answering<Outcome>) -> Self {
        Self::new(name, description, Run::Sync(run))
    }

    /// A list; takes `keyword`, `page` and `pagesize`, too.
    pub const fn list(name: &'static str, description: &'static str, run: fn(Call) -> Answering<Outcome>) -> Self {
        Self::new(name, description, Run::List(run))
    }

    /// A job.
    pub const fn job(
        name: &'static str,
        description: &'static str,
        event: &'static str,
        run: fn(Call) -> Answering<Job>,
    ) -> Self {
        let mut command = Self::new(name, description, Run::Job(run));
        command.event = Some(event);
        command
    }

    const fn new(name: &'static str, description: &'static str, run: Run) -> Self {
        Self {
            name,
            description,
            takes: &[],
            answers: &[],
            event: None,
            who: Who::Admin,
            run,
        }
    }

    /// What it takes.
    #[must_use]
    pub const fn takes(mut self, parameters: &'static [Parameter]) -> Self {
        self.takes = parameters;
        self
    }

    /// What its object has.
    #[must_use]
    pub const fn answers(mut self, fields: &'static [Field]) -> Self {
        self.answers = fields;
        self
    }

    /// Who may call it; else administrators.
    #[must_use]
    pub const fn open_to(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    /// Whether the caller gets a job.
    pub fn is_async(&self) -> bool {
        matches!(self.run, Run::Job(_))
    }

    /// The key of its answers (management.md §17.4, exceptions included).
    pub fn response_key(&self) -> String {
        match self.name {
            "getUploadParamsForTemplate" => "postuploadtemplateresponse".into(),
            "getUploadParamsForIso" => "postuploadisoresponse".into(),
            "getUploadParamsForVolume" => "postuploadvolumeresponse".into(),
            "scaleSystemVm" => "changeserviceforsystemvmresponse".into(),
            "archiveSnapshot" => "createsnapshotresponse".into(),
            name => response_key(name),
        }
    }
}

/// The usual key of answers.
pub fn response_key(command: &str) -> String {
    command.to_lowercase() + "response"
}

/// One call, checked: who, what and with what.
#[derive(Clone)]
pub struct Call {
    /// What commands work with.
    pub management: Arc<Management>,
    /// Who calls.
    pub caller: Caller,
    /// From where; `None`: over the server's socket.
    pub from: Option<IpAddr>,
    /// The row of the table.
    pub command: &'static Command,
    /// What it was told.
    pub parameters: Parameters,
}

impl std::ops::Deref for Call {
    type Target = Parameters;

    fn deref(&self) -> &Parameters {
        &self.parameters
    }
}

impl Call {
    /// Records that the caller has done something, for commands that are no jobs.
    ///
    /// # Errors
    /// The store.
    pub async fn record(
        &self,
        event_type: &'static str,
        description: impl Into<String>,
        resource: Option<(&'static str, Uuid)>,
    ) -> Result<(), StoreError> {
        let event = NewEvent {
            event_type,
            level: Level::Info,
            state: EventState::Completed,
            description: description.into(),
            parent: None,
            user: self.caller.identity.user.id,
            resource,
        };
        self.management.store.add_event(event).await.map(drop)
    }
}

/// What a command says when it is done.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// `{"zone": {…}}`.
    Object(&'static str, Value),
    /// The fields themselves.
    Fields(Map<String, Value>),
    /// `{"count": 3, "zone": […]}`: one page of `count` rows. Nothing at all when there are none.
    List {
        /// The objects' name.
        object: &'static str,
        /// Rows of all pages.
        count: u64,
        /// Those of this page.
        rows: Vec<Value>,
    },
    /// `{"success": true}`, with a sentence for people.
    Success(Option<String>),
}

impl Outcome {
    /// Without an answer's key around it. Fields that are null are left out by who writes it.
    pub fn into_value(self) -> Value {
        let mut fields = Map::new();
        match self {
            Self::Object(name, value) => {
                fields.insert(name.into(), value);
            }
            Self::Fields(all) => fields = all,
            Self::List { count: 0, .. } => {}
            Self::List { object, count, rows } => {
                fields.insert("count".into(), count.into());
                if !rows.is_empty() {
                    fields.insert(object.into(), rows.into());
                }
            }
            Self::Success(text) => {
                fields.insert("success".into(), true.into());
                fields.extend(text.map(|text| ("displaytext".to_owned(), text.into())));
            }
        }
        fields.into()
    }
}

/// A job that is about to start: what it was told is good.
pub struct Job {
    /// Type and id of what it works on, such as `SystemVm`: events name it, and jobs on it queue up.
    pub instance: Option<(&'static str, Uuid)>,
    /// Of a new object, which exists already.
    pub id: Option<Uuid>,
    /// Instead of the table's event type.
    pub event: Option<&'static str>,
    /// For the event, such as "destroying system VM s-1-VM".
    pub description: String,
    /// What it does.
    pub work: Work,
}

impl Job {
    /// A job, described for people.
    pub fn new(
        description: impl Into<String>,
        work: impl Future<Output = Result<Outcome, ApiError>> + Send + 'static,
    ) -> Self {
        Self {
            instance: None,
            id: None,
            event: None,
            description: description.into(),
            work: Box::pin(async { Ok(work.await?.into_value()) }),
        }
    }

    /// What it works on.
    #[must_use]
    pub fn on(mut self, resource_type: &'static str, id: Uuid) -> Self {
        self.instance = Some((resource_type, id));
        self
    }

    /// The new object is answered at once.
    #[must_use]
    pub fn creates(mut self, resource_type: &'static str, id: Uuid) -> Self {
        self.id = Some(id);
        self.on(resource_type, id)
    }

    /// Another event type than the table's.
    #[must_use]
    pub fn event(mut self, event_type: &'static str) -> Self {
        self.event = Some(event_type);
        self
    }
}
