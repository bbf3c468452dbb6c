//! The Chrome DevTools Protocol: JSON calls with numbers, answers in any order, events between them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::{Origin, Problem};

/// A screenshot of a big page takes seconds on a busy machine; beyond this Chromium hangs.
const CALL_LIMIT: Duration = Duration::from_mins(1);
/// A full-page screenshot in Base64 has some MB.
const MAX_MESSAGE: usize = 128 << 20;
/// A page in a loop must not fill our memory.
const MAX_PROBLEMS: usize = 1000;

/// A connection to the browser or to one tab. Dropping it ends it.
pub(super) struct Devtools {
    calls: mpsc::Sender<Call>,
    problems: watch::Receiver<Vec<Problem>>,
}

struct Call {
    method: String,
    parameters: Value,
    answer: oneshot::Sender<Value>,
}

impl Devtools {
    pub(super) async fn connect(address: &str, path: &str) -> anyhow::Result<Self> {
        let url = format!("ws://{address}{path}");
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            let config = WebSocketConfig::default()
                .max_message_size(Some(MAX_MESSAGE))
                .max_frame_size(Some(MAX_MESSAGE));
            let (socket, _) = client_async_with_config(&url, stream, Some(config)).await?;
            anyhow::Ok(socket)
        };
        let socket = timeout(CALL_LIMIT, connect)
            .await
            .context("no answer in time")
            .flatten()
            .with_context(|| format!("connecting to Chromium at {url}"))?;
        let (calls, queue) = mpsc::channel(16);
        let (problem, problems) = watch::channel(Vec::new());
        tokio::spawn(drive(socket, queue, problem));
        Ok(Self { calls, problems })
    }

    /// The `result` of a call.
    pub(super) async fn call(&self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        let ask = async {
            let (answer, answered) = oneshot::channel();
            let call = Call {
                method: method.to_owned(),
                parameters,
                answer,
            };
            self.calls
                .send(call)
                .await
                .ok()
                .context("Chromium closed the connection")?;
            answered.await.context("Chromium closed the connection")
        };
        let answer = timeout(CALL_LIMIT, ask).await.context("no answer in time").flatten();
        let mut answer = answer.with_context(|| format!("asking Chromium for {method}"))?;
        if let Some(error) = answer.get("error") {
            bail!(
                "Chromium refused {method}: {}",
                error["message"].as_str().unwrap_or("it does not say why")
            );
        }
        Ok(answer["result"].take())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.borrow().clone()
    }
}

/// Ends when the socket does, or when the [`Devtools`] is dropped. Whoever still waits then learns it.
async fn drive(
    mut socket: WebSocketStream<TcpStream>,
    mut calls: mpsc::Receiver<Call>,
    problems: watch::Sender<Vec<Problem>>,
) {
    let mut waiting: HashMap<u64, oneshot::Sender<Value>> = HashMap::new();
    let mut last_id = 0;
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some(call) = call else { return };
                last_id += 1;
                let text = json!({ "id": last_id, "method": call.method, "params": call.parameters }).to_string();
                if socket.send(Message::text(text)).await.is_err() {
                    return;
                }
                waiting.insert(last_id, call.answer);
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                let Ok(message) = serde_json::from_slice::<Value>(&message.into_data()) else { continue };
                if let Some(answer) = message["id"].as_u64().and_then(|id| waiting.remove(&id)) {
                    answer.send(message).ok(); // it may have stopped waiting
                } else if let Some(problem) = problem_of(&message) {
                    problems.send_if_modified(|problems| {
                        let has_room = problems.len() < MAX_PROBLEMS;
                        if has_room {
                            problems.push(problem);
                        }
                        has_room
                    });
                }
            }
        }
    }
}

fn problem_of(event: &Value) -> Option<Problem> {
    let parameters = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(Problem {
            origin: Origin::Exception,
            text: thrown(&parameters["exceptionDetails"]),
        }),
        "Runtime.consoleAPICalled" if matches!(parameters["type"].as_str(), Some("error" | "assert")) => {
            let words = parameters["args"].as_array()?.iter().map(shown);
            Some(Problem {
                origin: Origin::Console,
                text: words.collect::<Vec<_>>().join(" "),
            })
        }
        "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
            let entry = &parameters["entry"];
            let origin = if entry["source"] == "network" {
                Origin::Network
            } else {
                Origin::Browser
            };
            let (text, url) = (entry["text"].as_str()?, entry["url"].as_str().unwrap_or_default());
            Some(Problem {
                origin,
                text: format!("{text} {url}").trim_end().to_owned(),
            })
        }
        _ => None,
    }
}

/// An exception with its stack, or at least its text.
pub(super) fn thrown(details: &Value) -> String {
    let stack = details["exception"]["description"].as_str();
    let text = details["text"].as_str().unwrap_or("something");
    stack.unwrap_or(text).to_owned()
}

fn shown(argument: &Value) -> String {
    match (&argument["value"], argument["description"].as_str()) {
        (Value::String(text), _) => text.clone(),
        (Value::Null, Some(description)) => description.to_owned(),
        (value, _) => value.to_string(),
    }
}
