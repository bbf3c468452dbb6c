//! Asks a running server over the socket in its data directory: the command line's way to the API.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::api::form;
use crate::web::SOCKET;

/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// For one answer.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);
/// Between two questions for a job.
const POLL: Duration = Duration::from_millis(250);

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server is not there.
    #[error(
        "cannot reach a server at {path}; is `mgmt-stub serve` running with this --data-dir, and may you open its socket?"
    )]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection.
    #[error("the connection to the server broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It takes too long.
    #[error("the server did not answer within {0:?}")]
    Slow(Duration),
    /// It is no answer of the API.
    #[error("the server's answer is not understood: {0}")]
    Strange(String),
    /// The server refused, and says why.
    #[error("{text} (errorcode {code})")]
    Refused {
        /// `errorcode`.
        code: i64,
        /// `errortext`.
        text: String,
    },
    /// The job failed, and says why.
    #[error("the job failed: {text} (errorcode {code})")]
    JobFailed {
        /// `errorcode`.
        code: i64,
        /// `errortext`.
        text: String,
    },
}

/// The API of the server with this data directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects when something is asked.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            socket: data_dir.join(SOCKET),
        }
    }

    /// Calls a command; its answer, without the key around it.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn call(&self, command: &str, parameters: &[(String, String)]) -> Result<Value, ClientError> {
        let mut form = String::from("response=json&command=");
        form::encode(command, &mut form);
        for (name, value) in parameters {
            form.push('&');
            form::encode(name, &mut form);
            form.push('=');
            form::encode(value, &mut form);
        }
        let answer = timeout(ANSWER_LIMIT, self.post(form)).await;
        let answer = answer.unwrap_or(Err(ClientError::Slow(ANSWER_LIMIT)))?;
        let strange = || ClientError::Strange(String::from_utf8_lossy(&answer).chars().take(200).collect());
        let Ok(Value::Object(outer)) = serde_json::from_slice(&answer) else {
            return Err(strange());
        };
        let inner = outer.into_iter().next().map(|(_, inner)| inner).ok_or_else(strange)?;
        match refusal(&inner) {
            Some((code, text)) => Err(ClientError::Refused { code, text }),
            None => Ok(inner),
        }
    }

    /// Likewise, and waits for the job if it is one: then the answer is `jobresult`.
    ///
    /// # Errors
    /// Likewise, or the job fails.
    pub async fn call_and_wait(&self, command: &str, parameters: &[(String, String)]) -> Result<Value, ClientError> {
        let answer = self.call(command, parameters).await?;
        let Some(id) = answer.get("jobid").and_then(Value::as_str) else {
            return Ok(answer);
        };
        // Only a job's own answer has a jobid and not yet a status.
        if answer.get("jobstatus").is_some() {
            return Ok(answer);
        }
        loop {
            let job = self.call("queryAsyncJobResult", &[("jobid".into(), id.into())]).await?;
            let result = job.get("jobresult").cloned().unwrap_or_default();
            match job.get("jobstatus").and_then(Value::as_i64) {
                Some(0) => sleep(POLL).await,
                Some(1) => return Ok(result),
                _ => {
                    let (code, text) = refusal(&result).unwrap_or((530, result.to_string()));
                    return Err(ClientError::JobFailed { code, text });
                }
            }
        }
    }

    async fn post(&self, form: String) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::NotThere {
                path: self.socket.clone(),
                source,
            })?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::post("/client/api")
                .header(HOST, "localhost")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::new(Bytes::from(form)))?;
            let answer = async {
                let answer = sender.send_request(request).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                    Limited::new(answer, MAX_ANSWER).collect().await?.to_bytes(),
                )
            };
            tokio::select! {
                biased;
                answer = answer => answer,
                ended = connection => Err(ended.err().map_or_else(|| "the server closed it".into(), Into::into)),
            }
        };
        exchange.await.map_err(ClientError::Broken)
    }
}

fn refusal(answer: &Value) -> Option<(i64, String)> {
    let text = answer.get("errortext")?.as_str()?.to_owned();
    Some((answer.get("errorcode")?.as_i64()?, text))
}
