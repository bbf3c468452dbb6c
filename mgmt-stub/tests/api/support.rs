//! A server on a free port, and a client that says exactly what a test wants.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap, SET_COOKIE};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use mgmt_stub::agents::Agents;
use mgmt_stub::api::Api;
use mgmt_stub::client::{Client, ClientError};
use mgmt_stub::configuration::Configuration;
use mgmt_stub::driver::Driver;
use mgmt_stub::management::Management;
use mgmt_stub::password;
use mgmt_stub::store::Store;
use mgmt_stub::store::id::ZoneId;
use mgmt_stub::user_vms::UserVms;
use mgmt_stub::web::WebServer;
use mgmt_stub::zone::Zone;
use protocol::secret::Secret;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) struct Server {
    pub(crate) management: Arc<Management>,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    stop: CancellationToken,
    task: JoinHandle<()>,
    running: Option<JoinHandle<()>>,
    driver: Option<Arc<dyn Driver>>,
    directory: TempDir,
}

/// What a client sees.
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// `Cookie` of the next request.
    pub(crate) fn cookies(&self) -> String {
        let pairs = self.headers.get_all(SET_COOKIE).iter();
        let pairs = pairs.map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap());
        pairs.collect::<Vec<_>>().join("; ")
    }

    /// Status and `errortext`.
    pub(crate) fn refusal(&self) -> (u16, String) {
        let json = self.json();
        let inner = json.as_object().unwrap().values().next().unwrap().clone();
        assert_eq!(inner["errorcode"], self.status);
        (self.status, inner["errortext"].as_str().unwrap().to_owned())
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None).await
    }

    /// With a hypervisor for VMs of users.
    pub(crate) async fn start_with(driver: Arc<dyn Driver>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Some(driver)).await
    }

    async fn start_in(directory: TempDir, driver: Option<Arc<dyn Driver>>) -> Self {
        let store = Store::open(directory.path()).unwrap();
        let agents = Agents::new(store.clone());
        let configuration = Configuration::load(store.clone()).await.unwrap();
        let stop = CancellationToken::new();
        let user_vms = match &driver {
            None => None,
            Some(driver) => {
                let pool = directory.path().join("primary");
                let (store, configuration, driver) = (store.clone(), configuration.clone(), Arc::clone(driver));
                let opened = UserVms::open(store, configuration, driver, ZoneId(1), pool).await;
                Some(opened.unwrap())
            }
        };
        let has_driver = driver.is_some();
        let (zone, books) = Zone::new(store.clone(), agents.clone(), configuration.clone(), None, user_vms);
        let running = has_driver.then(|| tokio::spawn(zone.clone().run(books, store.clone(), stop.clone())));
        let management = Management::new(store, agents, configuration, zone).await.unwrap();
        let management = Arc::new(management);
        let web = WebServer::bind((Ipv4Addr::LOCALHOST, 0).into(), directory.path())
            .await
            .unwrap();
        let address = web.local_addr().unwrap();
        let task = tokio::spawn(web.serve(Api::new(Arc::clone(&management)), stop.clone()));
        Self {
            management,
            address,
            client: Client::new(directory.path()),
            stop,
            task,
            running,
            driver,
            directory,
        }
    }

    /// Ends in an orderly way and starts again on the same data.
    pub(crate) async fn restart(self) -> Self {
        self.stop.cancel();
        self.task.await.unwrap();
        if let Some(running) = self.running {
            running.await.unwrap();
        }
        self.management.jobs.stop().await;
        let Self {
            directory,
            management,
            driver,
            ..
        } = self;
        drop(management);
        Self::start_in(directory, driver).await
    }

    pub(crate) async fn request(&self, method: Method, query: &str, cookies: &str, form: Option<&str>) -> Seen {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/client/api?{query}"))
            .header(HOST, "localhost");
        if !cookies.is_empty() {
            request = request.header(COOKIE, cookies);
        }
        if form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::from(form.unwrap_or_default().to_owned()));
        let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        Seen {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        }
    }

    pub(crate) async fn get(&self, query: &str) -> Seen {
        self.request(Method::GET, query, "", None).await
    }

    pub(crate) async fn post(&self, form: &str) -> Seen {
        self.request(Method::POST, "", "", Some(form)).await
    }

    /// A command over the server's socket.
    pub(crate) async fn api(&self, command: &str, parameters: &[(&str, &str)]) -> Result<Value, ClientError> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let parameters: Vec<_> = parameters.iter().map(own).collect();
        self.client.call_and_wait(command, &parameters).await
    }

    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// A one-time password, as `reset-admin-password` makes it.
    pub(crate) async fn one_time_password(&self) -> Secret<String> {
        let store = &self.management.store;
        let admin = store.administrator().await.unwrap().user;
        let password = password::one_time();
        store
            .set_one_time_password(admin.id, password::hash(&password))
            .await
            .unwrap();
        password
    }
}

/// The same for the same answer: each UUID is a number by its first appearance, dates are DATE, keys are KEY.
pub(crate) fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut known: Vec<Uuid> = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let uuid = rest
            .get(..36)
            .filter(|part| part.contains('-'))
            .and_then(|part| Uuid::try_parse(part).ok());
        let is_date = rest
            .get(..24)
            .is_some_and(|part| part.ends_with("+0000") && part.as_bytes()[10] == b'T');
        if let Some(uuid) = uuid {
            let number = known.iter().position(|one| *one == uuid).unwrap_or_else(|| {
                known.push(uuid);
                known.len() - 1
            });
            let _ = write!(out, "UUID{number}");
            rest = &rest[36..];
        } else if is_date {
            out.push_str("DATE");
            rest = &rest[24..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}
