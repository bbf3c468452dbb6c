//! login and logout. Both deal with cookies, so that the API calls them itself; their rows describe them.

use std::sync::Arc;

use hyper::Method;
use hyper::header::HeaderValue;
use protocol::secret::Secret;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::command::Kind::Text;
use crate::api::command::{Answering, Call, Command, Field, Outcome, Who, optional, required};
use crate::api::error::{ApiError, Code};
use crate::api::parameters::Parameters;
use crate::api::session::{self, Caller, Opened, Proof};
use crate::api::{Asked, Trust, value_of};
use crate::management::Management;
use crate::store::account::Identity;
use crate::store::event::{EventState, Level, NewEvent};

pub(super) const COMMANDS: &[Command] = &[
    Command::sync(
        "login",
        "Opens a session for a user with his password: two cookies, and a key that each call must have. Only by POST.",
        without_request,
    )
    .open_to(Who::Anyone)
    .takes(&[
        required("username", Text, "the user's name"),
        required("password", Text, "his password"),
        optional("domain", Text, "path of his domain, such as /sales; without it ROOT"),
        optional("domainid", Text, "id of his domain, instead of its path"),
    ])
    .answers(&[
        Field("username", Text, "the user's name"),
        Field("userid", Text, "the user's id"),
        Field("account", Text, "name of the account"),
        Field("domainid", Text, "id of the domain"),
        Field("firstname", Text, "first name"),
        Field("lastname", Text, "last name"),
        Field("type", Text, "1 root administrator, 2 domain administrator, 0 user"),
        Field("timezone", Text, "the user's time zone"),
        Field("timezoneoffset", Text, "its offset in hours"),
        Field("timeout", Text, "seconds without a call after which the session ends"),
        Field("registered", Text, "true"),
        Field("sessionkey", Text, "parameter sessionkey of all calls of this session"),
        Field("is2faenabled", Text, "whether a second factor is used"),
        Field("is2faverified", Text, "whether a second factor was given"),
        Field("issuerfor2fa", Text, "who issues second factors"),
        Field("managementserverid", Text, "id of this management server"),
        Field(
            "passwordchangerequired",
            Text,
            "true: choose a password first, with updateUser",
        ),
    ]),
    Command::sync("logout", "Ends a session.", without_request)
        .open_to(Who::Anyone)
        .answers(&[Field("description", Text, "success")]),
];

/// Not a request of its own: part of something else that this server does.
fn without_request(_: Call) -> Answering<Outcome> {
    Box::pin(std::future::ready(Err(ApiError::new(
        Code::Unsupported,
        "login and logout are requests of their own",
    ))))
}

type Answered = Result<(Value, Vec<HeaderValue>), ApiError>;

pub(in crate::api) async fn login(management: &Arc<Management>, asked: &Asked<'_>) -> Answered {
    if asked.method != Method::POST {
        return Err(ApiError::new(
            Code::MethodNotAllowed,
            "login takes a POST: passwords do not belong into addresses, which are kept in logs",
        ));
    }
    if asked.trust == Trust::Administrator {
        return Err(ApiError::new(
            Code::Unsupported,
            "over this socket you are the administrator already",
        ));
    }
    let parameters = Parameters::check(&COMMANDS[0], asked.pairs)?;
    let path = domain_path(management, &parameters).await?;
    let password = Secret::new(parameters.needed_text("password")?.to_owned());
    let name = parameters.needed_text("username")?;
    let (identity, opened) = session::log_in(management, name, password, path, asked.from).await?;
    record(management, &identity, "USER.LOGIN", "user has logged in").await?;
    let cookie = |text: String| HeaderValue::from_str(&text).map_err(|_| ApiError::new(Code::Internal, "bad cookie"));
    let Opened { id, key, .. } = &opened;
    let cookies = vec![
        cookie(format!(
            "JSESSIONID={}; Path=/client; HttpOnly; SameSite=Lax",
            id.expose()
        ))?,
        cookie(format!(
            "sessionkey={}; Path=/client; HttpOnly; SameSite=Lax",
            key.expose()
        ))?,
    ];
    Ok((description(management, &identity, &opened), cookies))
}

/// All values are texts.
fn description(management: &Management, identity: &Identity, opened: &Opened) -> Value {
    let Identity { user, account, domain } = identity;
    json!({
        "username": user.username,
        "userid": user.uuid,
        "domainid": domain.uuid,
        "timeout": opened.timeout.to_string(),
        "account": account.name,
        "firstname": user.first_name,
        "lastname": user.last_name,
        "type": account.account_type.to_string(),
        "timezone": user.timezone,
        "timezoneoffset": user.timezone.is_none().then_some("0.0"),
        "registered": "true",
        "sessionkey": opened.key.expose(),
        "is2faenabled": "false",
        "is2faverified": "true",
        "issuerfor2fa": "CloudStack",
        "managementserverid": management.id,
        "passwordchangerequired": user.password_change_required.to_string(),
    })
}

/// `/` for ROOT; with or without ROOT in front, as clients write it.
async fn domain_path(management: &Management, parameters: &Parameters) -> Result<String, ApiError> {
    if let Some(id) = parameters.text("domainid") {
        let domains = management.store.domains().await?;
        let id: Uuid = id.parse().map_err(|_| ApiError::no_such("domainid", id))?;
        let domain = domains.into_iter().find(|domain| domain.uuid == id);
        return Ok(domain.ok_or_else(|| ApiError::no_such_id("domainid", id))?.path);
    }
    let path = parameters.text("domain").unwrap_or("/").trim_matches('/');
    let path = path.strip_prefix("ROOT").unwrap_or(path).trim_matches('/');
    Ok(format!("/{path}"))
}

async fn record(
    management: &Management,
    identity: &Identity,
    event_type: &'static str,
    description: &str,
) -> Result<(), ApiError> {
    let event = NewEvent {
        event_type,
        level: Level::Info,
        state: EventState::Completed,
        description: description.into(),
        parent: None,
        user: identity.user.id,
        resource: Some(("User", identity.user.uuid)),
    };
    management.store.add_event(event).await?;
    Ok(())
}

/// Also without a session, or with one that has ended: then there is nothing left to do.
pub(in crate::api) async fn logout(management: &Arc<Management>, asked: &Asked<'_>) -> Answered {
    let found = session::of_session(management, asked.headers, value_of(asked.pairs, "sessionkey")).await;
    if let Ok(Caller {
        identity,
        proof: Proof::Session(id),
    }) = found
    {
        management.store.end_session(id).await?;
        record(management, &identity, "USER.LOGOUT", "user has logged out").await?;
    }
    let gone = |name: &str| format!("{name}=; Path=/client; HttpOnly; SameSite=Lax; Max-Age=0");
    let cookies = ["JSESSIONID", "sessionkey"]
        .iter()
        .filter_map(|name| HeaderValue::from_str(&gone(name)).ok());
    Ok((json!({ "description": "success" }), cookies.collect()))
}
