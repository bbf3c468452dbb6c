//! Who calls: by a session of the web page, by a signature, or over the server's own socket (management.md §17.2, §17.3).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{COOKIE, HeaderMap, HeaderValue};
use protocol::secret::Secret;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::{ApiError, Code};
use super::form::Pair;
use super::signature;
use crate::configuration::{SESSION_TIMEOUT, SESSIONKEY_CHECK_LOCATIONS};
use crate::management::Management;
use crate::store::account::Identity;
use crate::{password, random};

/// Random bytes of a session id and of a session key.
const ID_LEN: usize = 24;
/// Uses of a session within this time are written once.
const TOUCH_AFTER: Duration = Duration::from_secs(30);
/// Wrong passwords for one name from one address within [`WRONG_WINDOW`]; more are not looked at.
const MAX_WRONG: u32 = 10;
const WRONG_WINDOW: Duration = Duration::from_mins(5);
/// Names and addresses with wrong passwords that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Passwords that are looked at at the same time: each keeps a core busy.
const MAX_VERIFYING: usize = 2;
/// Bytes of a user's name.
const MAX_NAME: usize = 255;
/// Bytes of a password that is looked at.
const MAX_PASSWORD: usize = 1024;

/// Who calls, and how he proved it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// How.
    pub proof: Proof,
}

/// How a caller proved who he is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// None: only what anyone may call.
    None,
    /// He may open the server's socket.
    Socket,
    /// With his secret key.
    Signature,
    /// With a session of this id (its hash).
    Session(String),
}

impl Caller {
    /// Whether he may do everything.
    pub fn is_admin(&self) -> bool {
        self.identity.account.account_type == 1 && self.proof != Proof::None
    }
}

/// A new session, for its owner.
pub struct Opened {
    /// Cookie `JSESSIONID`.
    pub id: Secret<String>,
    /// Parameter and cookie `sessionkey`.
    pub key: Secret<String>,
    /// Seconds without use after which it ends.
    pub timeout: u64,
}

/// Wrong passwords, and how many are looked at.
pub(crate) struct Logins {
    wrong: Mutex<HashMap<(String, Option<IpAddr>), Wrong>>,
    verifying: Semaphore,
}

struct Wrong {
    count: u32,
    since: Instant,
}

impl Default for Logins {
    fn default() -> Self {
        Self {
            wrong: Mutex::default(),
            verifying: Semaphore::new(MAX_VERIFYING),
        }
    }
}

impl Logins {
    /// May this name be tried from there? Counts the try as wrong until [`Logins::forgive`]: many at once are no way
    /// around the limit.
    fn admit(&self, who: &(String, Option<IpAddr>)) -> Result<(), ApiError> {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |wrong: &Wrong| wrong.since.elapsed() >= WRONG_WINDOW;
        if wrong.len() >= MAX_REMEMBERED {
            wrong.retain(|_, wrong| !is_over(wrong));
        }
        if wrong.len() >= MAX_REMEMBERED {
            wrong.clear(); // an attacker with very many names or addresses
        }
        let new = || Wrong {
            count: 0,
            since: Instant::now(),
        };
        let entry = wrong.entry(who.clone()).or_insert_with(new);
        if is_over(entry) {
            *entry = new();
        }
        if entry.count >= MAX_WRONG {
            let wait = WRONG_WINDOW.saturating_sub(entry.since.elapsed()).as_secs() + 1;
            let text = format!("too many wrong passwords for this user; try again in {wait} seconds");
            return Err(ApiError::new(Code::TooManyRequests, text));
        }
        entry.count += 1;
        Ok(())
    }

    /// It was the right one.
    fn forgive(&self, who: &(String, Option<IpAddr>)) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).remove(who);
    }

    /// Whether the password is the one of the hash; takes as long for a user who does not exist.
    pub(crate) async fn verify(&self, password: Secret<String>, hash: Option<Secret<String>>) -> bool {
        let Ok(_place) = self.verifying.acquire().await else {
            return false;
        };
        let verify = move || {
            if let Some(hash) = hash {
                return password::verify(&password, &hash);
            }
            password::hash(&password);
            false
        };
        tokio::task::spawn_blocking(verify).await.unwrap_or(false)
    }
}

/// Opens a session for a user with his password.
///
/// # Errors
/// 531: not this password. 429: too often. The store.
pub async fn log_in(
    management: &Management,
    name: &str,
    password: Secret<String>,
    domain_path: String,
    from: Option<IpAddr>,
) -> Result<(Identity, Opened), ApiError> {
    let refused = || {
        ApiError::new(
            Code::Permission,
            format!("Failed to authenticate user {name} in domain {domain_path}; please provide valid credentials"),
        )
    };
    if name.len() > MAX_NAME || password.expose().len() > MAX_PASSWORD {
        return Err(refused());
    }
    let who = (name.to_lowercase(), from);
    management.logins.admit(&who)?;
    let found = management.store.user_by_name(name, domain_path.clone()).await?;
    let hash = found.as_ref().and_then(|identity| identity.user.password_hash.clone());
    let is_good = management.logins.verify(password, hash).await;
    let found = found.filter(|_| is_good);
    let Some(identity) = found else {
        tracing::warn!(user = name, ?from, "Login refused: wrong user or password");
        return Err(refused());
    };
    if !management.store.use_password(identity.user.id).await? {
        tracing::warn!(user = name, "Login refused: the one-time password was used already");
        return Err(refused());
    }
    management.logins.forgive(&who);
    let (id, key) = (random::url_safe(ID_LEN), random::url_safe(ID_LEN));
    let timeout = management.configuration.time(&SESSION_TIMEOUT);
    let expired = OffsetDateTime::now_utc() - timeout;
    management
        .store
        .add_session(hash_of(&id), hash_of(&key), identity.user.id, expired)
        .await?;
    let opened = Opened {
        id: Secret::new(id),
        key: Secret::new(key),
        timeout: timeout.as_secs(),
    };
    Ok((identity, opened))
}

/// Whose session this is. One that does not fit is ended.
///
/// # Errors
/// 401: there is none, it has expired, or its key is not there.
pub async fn of_session(
    management: &Management,
    headers: &HeaderMap<HeaderValue>,
    session_key: Option<&str>,
) -> Result<Caller, ApiError> {
    let id = cookie(headers, "JSESSIONID").ok_or_else(ApiError::not_authenticated)?;
    let id_hash = hash_of(&id);
    let session = management
        .store
        .session(id_hash.clone())
        .await?
        .ok_or_else(ApiError::not_authenticated)?;
    let unused = OffsetDateTime::now_utc() - session.last_used;
    let is_expired = unused >= management.configuration.time(&SESSION_TIMEOUT);
    let is_key = |key: &str| hash_of(key) == session.key_hash;
    let has_cookie = management.configuration.text(&SESSIONKEY_CHECK_LOCATIONS) == "ParameterOnly"
        || cookie(headers, "sessionkey").is_some_and(|key| is_key(&key));
    if is_expired || !has_cookie || !session_key.is_some_and(is_key) {
        management.store.end_session(id_hash).await?;
        return Err(ApiError::not_authenticated());
    }
    if unused >= TOUCH_AFTER {
        management.store.touch_session(id_hash.clone()).await?;
    }
    Ok(Caller {
        identity: session.identity,
        proof: Proof::Session(id_hash),
    })
}

/// Whether a session is still good, without using it.
pub async fn is_open(management: &Management, id_hash: &str) -> bool {
    let session = management.store.session(id_hash.to_owned()).await;
    session.ok().flatten().is_some_and(|session| {
        let unused = OffsetDateTime::now_utc() - session.last_used;
        unused < management.configuration.time(&SESSION_TIMEOUT)
    })
}

/// Who signed this.
///
/// # Errors
/// 401: nobody we know.
pub async fn of_signature(management: &Management, pairs: &[Pair], api_key: &str) -> Result<Caller, ApiError> {
    let found = management.store.user_by_api_key(api_key).await?;
    let identity = found.ok_or_else(ApiError::not_authenticated)?;
    let secret = identity
        .user
        .secret_key
        .clone()
        .ok_or_else(ApiError::not_authenticated)?;
    if !signature::is_good(pairs, &secret, OffsetDateTime::now_utc()) {
        return Err(ApiError::not_authenticated());
    }
    Ok(Caller {
        identity,
        proof: Proof::Signature,
    })
}

/// The value of a cookie.
fn cookie(headers: &HeaderMap<HeaderValue>, name: &str) -> Option<String> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(found, value)| (found == name).then(|| value.trim_matches('"').to_owned()))
}

/// What the database knows of a secret. Equal hashes are no news to who measures time: he cannot choose them.
fn hash_of(secret: &str) -> String {
    use std::fmt::Write;

    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(secret.as_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
