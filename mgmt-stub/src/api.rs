//! The HTTP API (management.md §17): from a request to a command, and from its outcome to an answer.
//!
//! A command is a function and a row of a table in `api/commands/<noun>.rs`. The table dispatches, checks parameters,
//! and is what `listApis` shows; nothing else has to be told about a new command.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use platform::http::{self, BadBody, Request, Response};
use serde_json::{Map, Value, json};
use tracing::{Instrument, debug, info, info_span};

use crate::configuration::ALLOWED_SOURCE_CIDRS;
use crate::jobs::Wanted;
use crate::management::Management;
use crate::metrics::Metrics;
use command::{Call, Command, Run, Who};
use error::{ApiError, Code};
use form::Pair;
use parameters::Parameters;
use render::Format;
use session::{Caller, Proof};

/// What a command is.
pub mod command;
pub mod commands;
pub mod date;
/// Errors as callers see them.
pub mod error;
pub mod form;
/// Pages of lists.
pub mod list;
/// What a call was told.
pub mod parameters;
mod render;
/// Who calls.
pub mod session;
mod signature;

/// Bytes of a form.
const MAX_BODY: usize = 256 << 10;
/// For a form to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// Why a caller may be believed before he has said a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// He came over the network.
    Nobody,
    /// He may open the server's socket, so he is the administrator.
    Administrator,
}

/// The API; cheap to clone.
#[derive(Clone)]
pub struct Api {
    management: Arc<Management>,
    metrics: Arc<Metrics>,
}

impl Api {
    /// Over this management server.
    pub fn new(management: Arc<Management>) -> Self {
        let metrics = Arc::new(Metrics::new(&management));
        Self { management, metrics }
    }

    /// What commands work with.
    pub fn management(&self) -> &Arc<Management> {
        &self.management
    }

    /// Answers a request to `/metrics`, for the server's own socket.
    pub async fn metrics(&self) -> Response {
        let text = self.metrics.text(&self.management).await;
        http::answer(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        )
    }

    /// Answers a request to `/client/api`.
    pub async fn answer(&self, request: Request, from: Option<IpAddr>, trust: Trust) -> Response {
        let (head, body) = request.into_parts();
        let mut pairs = Vec::new();
        let read = async {
            form::parse(head.uri.query().unwrap_or_default().as_bytes(), &mut pairs)?;
            match head.method {
                Method::GET => {}
                Method::POST => form::parse(&read_form(&head.headers, body).await?, &mut pairs)?,
                _ => return Err(ApiError::new(Code::MethodNotAllowed, "the API takes GET and POST")),
            }
            Ok(())
        };
        let read = read.await;
        let format = Format::of(value_of(&pairs, "response"));
        let name = value_of(&pairs, "command").unwrap_or_default();
        let command = commands::find(name);
        let key = command.map_or_else(|| "errorresponse".to_owned(), Command::response_key);
        let asked = Asked {
            pairs: &pairs,
            headers: &head.headers,
            method: &head.method,
            from,
            trust,
        };
        let started = Instant::now();
        let answered = match read {
            Ok(()) => self.run(command, name, &asked).await,
            Err(error) => Err(error),
        };
        let refused = answered.as_ref().err().map(|error| error.code);
        let label = command.map_or("unknown", |command| command.name);
        self.metrics.answered(label, refused, started.elapsed());
        match answered {
            Ok((value, cookies)) => {
                let mut response = http::answer(StatusCode::OK, format.content_type(), format.render(&key, value));
                for cookie in cookies {
                    response.headers_mut().append(header::SET_COOKIE, cookie);
                }
                response
            }
            Err(error) => refusal(&error, format, &key),
        }
    }

    async fn run(
        &self,
        command: Option<&'static Command>,
        name: &str,
        asked: &Asked<'_>,
    ) -> Result<(Value, Vec<HeaderValue>), ApiError> {
        let Some(command) = command else {
            let name: String = name.chars().take(100).collect();
            let text = match name.as_str() {
                "" => "parameter command is missing; listApis shows all commands".to_owned(),
                name => format!(
                    "The given command '{name}' either does not exist, is not available for user, or not \
                                 available from ip address"
                ),
            };
            return Err(ApiError::new(Code::Unsupported, text));
        };
        let started = Instant::now();
        let span = info_span!("api", command = command.name);
        let run = async {
            self.admit(asked.from)?;
            let outcome = match command.name {
                "login" => commands::session::login(&self.management, asked).await,
                "logout" => commands::session::logout(&self.management, asked).await,
                _ => {
                    let caller = self.caller(asked).await?;
                    let value = self.call(&caller, asked.from, command, asked.pairs).await?;
                    Ok((value, Vec::new()))
                }
            };
            match &outcome {
                Ok(_) => debug!(elapsed = ?started.elapsed(), "Answered"),
                // Anybody can be refused as often as he likes: no reason to fill a disk.
                Err(error) if error.code == Code::NotAuthenticated => debug!(%error, "Refused"),
                Err(error) => info!(%error, code = error.code.number(), "Refused"),
            }
            outcome
        };
        run.instrument(span).await
    }

    /// May this address call at all?
    fn admit(&self, from: Option<IpAddr>) -> Result<(), ApiError> {
        let allowed = |from: IpAddr| {
            let networks = self.management.configuration.networks(&ALLOWED_SOURCE_CIDRS);
            networks.iter().any(|network| network.contains(&from.to_canonical()))
        };
        if from.is_none_or(allowed) {
            return Ok(());
        }
        let text = format!(
            "this address may not call the API; the setting {} says which may",
            ALLOWED_SOURCE_CIDRS.name
        );
        Err(ApiError::new(Code::NotAuthenticated, text))
    }

    /// Who asks.
    async fn caller(&self, asked: &Asked<'_>) -> Result<Caller, ApiError> {
        if asked.trust == Trust::Administrator {
            let identity = self.management.store.administrator().await?;
            return Ok(Caller {
                identity,
                proof: Proof::Socket,
            });
        }
        if let Some(key) = value_of(asked.pairs, "apikey") {
            return session::of_signature(&self.management, asked.pairs, key).await;
        }
        self.session(asked.headers, value_of(asked.pairs, "sessionkey")).await
    }

    /// Whose session a request belongs to: its cookies, and its parameter `sessionkey`.
    ///
    /// # Errors
    /// 401: nobody's.
    pub async fn session(
        &self,
        headers: &HeaderMap<HeaderValue>,
        session_key: Option<&str>,
    ) -> Result<Caller, ApiError> {
        session::of_session(&self.management, headers, session_key).await
    }

    /// Likewise, with the parameter in the address: whose request this is that has no form.
    ///
    /// # Errors
    /// 401: nobody's. 430: a query that is none.
    pub async fn caller_of(&self, uri: &Uri, headers: &HeaderMap<HeaderValue>) -> Result<Caller, ApiError> {
        let mut pairs = Vec::new();
        form::parse(uri.query().unwrap_or_default().as_bytes(), &mut pairs)?;
        self.session(headers, value_of(&pairs, "sessionkey")).await
    }

    /// Whether a session (the hash of its id) is still good. Asking is not using it.
    pub async fn is_session_open(&self, id_hash: &str) -> bool {
        session::is_open(&self.management, id_hash).await
    }

    /// Runs one command for a caller who is known and calls from this address; `pairs` are its parameters. Its value has
    /// no answer's key around it.
    ///
    /// # Errors
    /// What the caller is told.
    pub async fn call(
        &self,
        caller: &Caller,
        from: Option<IpAddr>,
        command: &'static Command,
        pairs: &[Pair],
    ) -> Result<Value, ApiError> {
        may(caller, command)?;
        let call = Call {
            management: Arc::clone(&self.management),
            caller: caller.clone(),
            from: from.map(|from| from.to_canonical()),
            command,
            parameters: Parameters::check(command, pairs)?,
        };
        match command.run {
            Run::Sync(run) | Run::List(run) => Ok(run(call).await?.into_value()),
            Run::Job(run) => {
                let job = run(call).await?;
                let wanted = Wanted {
                    user: caller.identity.user.id,
                    command: command.name,
                    instance: job.instance,
                    event: job.event.or(command.event).map(|event| (event, job.description)),
                    work: job.work,
                };
                let row = self.management.jobs.submit(wanted).await?;
                Ok(json!({ "id": job.id, "jobid": row.uuid }))
            }
        }
    }

    /// Likewise, of a command by its name and with plain parameters: for what this server shows by itself.
    ///
    /// # Errors
    /// What the caller is told.
    pub async fn call_named(
        &self,
        caller: &Caller,
        name: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Value, ApiError> {
        let command =
            commands::find(name).ok_or_else(|| ApiError::new(Code::Unsupported, "there is no such command"))?;
        let pair = |(name, value): &(&str, &str)| Pair {
            name: (*name).into(),
            value: (*value).into(),
        };
        let pairs: Vec<Pair> = parameters.iter().map(pair).collect();
        let mut value = self.call(caller, None, command, &pairs).await?;
        render::drop_nulls(&mut value);
        Ok(value)
    }
}

/// One request, read.
pub(crate) struct Asked<'a> {
    pub(crate) pairs: &'a [Pair],
    pub(crate) headers: &'a HeaderMap<HeaderValue>,
    pub(crate) method: &'a Method,
    pub(crate) from: Option<IpAddr>,
    pub(crate) trust: Trust,
}

/// Of a parameter that is there and not empty.
pub(crate) fn value_of<'a>(pairs: &'a [Pair], name: &str) -> Option<&'a str> {
    let pair = pairs.iter().find(|pair| pair.name.eq_ignore_ascii_case(name));
    pair.map(|pair| pair.value.as_str()).filter(|value| !value.is_empty())
}

/// Whether this caller may call this.
fn may(caller: &Caller, command: &Command) -> Result<(), ApiError> {
    let is_allowed = match command.who {
        Who::Anyone => true,
        Who::User => caller.proof != Proof::None,
        Who::Admin => caller.is_admin(),
    };
    if !is_allowed {
        let text = format!("{} is for administrators", command.name);
        return Err(ApiError::new(Code::Permission, text));
    }
    let must_choose = caller.identity.user.password_change_required && matches!(caller.proof, Proof::Session(_));
    if must_choose && !WITH_ONE_TIME_PASSWORD.contains(&command.name) {
        let text = "this session was opened with a one-time password; choose a password first: updateUser with \
                    currentpassword and password";
        return Err(ApiError::new(Code::Permission, text));
    }
    Ok(())
}

/// What a session that was opened with a one-time password may do.
const WITH_ONE_TIME_PASSWORD: [&str; 4] = ["updateUser", "listApis", "listCapabilities", "listUsers"];

async fn read_form(headers: &HeaderMap<HeaderValue>, body: hyper::body::Incoming) -> Result<Vec<u8>, ApiError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or_default());
    let is_form = content_type.is_none_or(|kind| kind.trim_start().to_lowercase().starts_with(FORM));
    let body = http::read_body(body, MAX_BODY, BODY_LIMIT)
        .await
        .map_err(|error| match error {
            BadBody::TooLong(_) | BadBody::TooSlow(_) | BadBody::Broken(_) => {
                ApiError::new(Code::BadRequest, error.to_string())
            }
        })?;
    if !is_form && !body.is_empty() {
        return Err(ApiError::new(
            Code::BadRequest,
            format!("the body of a POST must be {FORM}"),
        ));
    }
    Ok(body.to_vec())
}

const FORM: &str = "application/x-www-form-urlencoded";

/// An error as its caller sees it.
fn refusal(error: &ApiError, format: Format, key: &str) -> Response {
    let mut fields = Map::new();
    fields.insert("uuidList".into(), Value::Array(Vec::new()));
    fields.insert("errorcode".into(), error.code.number().into());
    fields.insert("cserrorcode".into(), error.code.exception().into());
    fields.insert("errortext".into(), error.text.clone().into());
    let body = format.render(key, fields.into());
    let mut response = http::answer(error.code.status(), format.content_type(), body);
    let description: String = error
        .text
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { ' ' })
        .collect();
    if let Ok(description) = HeaderValue::from_str(description.trim()) {
        response.headers_mut().insert("x-description", description);
    }
    response
}
