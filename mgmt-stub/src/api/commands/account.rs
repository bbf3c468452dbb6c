//! Users, accounts, domains; passwords and keys.

use protocol::secret::Secret;
use serde_json::{Value, json};

use crate::api::command::Kind::{Date, Flag, Id, Number, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, Who, optional, required};
use crate::api::error::{ApiError, Code};
use crate::api::session::Proof;
use crate::api::{date, list};
use crate::store::account::{Identity, UserChange};
use crate::{password, random};

/// Random bytes of an API key and of a secret key; CloudStack has as many.
const KEY_LEN: usize = 64;

const USER: &[Field] = &[
    Field("id", Text, "the user"),
    Field("username", Text, "his name"),
    Field("firstname", Text, "first name"),
    Field("lastname", Text, "last name"),
    Field("email", Text, "mail address"),
    Field("created", Date, "since when"),
    Field("state", Text, "enabled"),
    Field("account", Text, "name of his account"),
    Field("accountid", Text, "id of his account"),
    Field(
        "accounttype",
        Number,
        "1 root administrator, 2 domain administrator, 0 user",
    ),
    Field("usersource", Text, "native"),
    Field("roletype", Text, "Admin or User"),
    Field("rolename", Text, "Root Admin or User"),
    Field("domainid", Text, "id of his domain"),
    Field("domain", Text, "name of his domain"),
    Field("timezone", Text, "his time zone"),
    Field("apikey", Text, "his key for the API"),
    Field("isdefault", Flag, "whether he was there from the start"),
    Field("is2faenabled", Flag, "whether he uses a second factor"),
    Field("is2famandated", Flag, "whether he must"),
];

const KEYS: &[Field] = &[
    Field("apikey", Text, "parameter apikey of signed calls"),
    Field("secretkey", Text, "what signs them; keep it"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listUsers", "Lists the users.", |call| Box::pin(list_users(call)))
        .open_to(Who::User)
        .takes(&[
            optional("id", Id, "one user"),
            optional("username", Text, "his name"),
            optional("account", Text, "those of an account"),
            optional("domainid", Id, "those of a domain"),
            optional("accounttype", Number, "those of such accounts"),
            optional("state", Text, "enabled"),
            optional("listall", Flag, "also those of other accounts"),
        ])
        .answers(USER),
    Command::list("listAccounts", "Lists the accounts.", |call| {
        Box::pin(list_accounts(call))
    })
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one account"),
        optional("name", Text, "its name"),
        optional("domainid", Id, "those of a domain"),
        optional("accounttype", Number, "those of a type"),
        optional("state", Text, "enabled"),
        optional("listall", Flag, "also others than the caller's"),
    ])
    .answers(&[
        Field("id", Text, "the account"),
        Field("name", Text, "its name"),
        Field(
            "accounttype",
            Number,
            "1 root administrator, 2 domain administrator, 0 user",
        ),
        Field("roletype", Text, "Admin or User"),
        Field("rolename", Text, "Root Admin or User"),
        Field("domainid", Text, "id of its domain"),
        Field("domain", Text, "name of its domain"),
        Field("domainpath", Text, "path of its domain"),
        Field("state", Text, "enabled"),
        Field("created", Date, "since when"),
        Field("isdefault", Flag, "whether it was there from the start"),
        Field("user", crate::api::command::Kind::Object, "its users"),
    ]),
    Command::list("listDomains", "Lists the domains.", |call| Box::pin(list_domains(call)))
        .open_to(Who::User)
        .takes(&[
            optional("id", Id, "one domain"),
            optional("name", Text, "its name"),
            optional("level", Number, "0 is ROOT"),
            optional("listall", Flag, "also others than the caller's"),
        ])
        .answers(&[
            Field("id", Text, "the domain"),
            Field("name", Text, "its name"),
            Field("level", Number, "0 is ROOT"),
            Field("parentdomainid", Text, "id of the domain above"),
            Field("parentdomainname", Text, "name of the domain above"),
            Field("haschild", Flag, "whether there are domains below"),
            Field("path", Text, "such as ROOT/sales"),
            Field("state", Text, "Active"),
            Field("created", Date, "since when"),
        ]),
    Command::job(
        "registerUserKeys",
        "Makes new keys for the API; a user's old ones end.",
        "REGISTER.USER.KEY",
        |call| Box::pin(register_user_keys(call)),
    )
    .takes(&[required("id", Id, "the user")])
    .answers(KEYS),
    Command::sync("getUserKeys", "Shows a user's keys for the API.", |call| {
        Box::pin(get_user_keys(call))
    })
    .takes(&[required("id", Id, "the user")])
    .answers(KEYS),
    Command::sync("updateUser", "Changes a user: his names, his password.", |call| {
        Box::pin(update_user(call))
    })
    .open_to(Who::User)
    .takes(&[
        required("id", Id, "the user"),
        optional("username", Text, "new name"),
        optional("firstname", Text, "new first name"),
        optional("lastname", Text, "new last name"),
        optional("email", Text, "new mail address"),
        optional("timezone", Text, "new time zone"),
        optional(
            "password",
            Text,
            "new password, of 8 to 200 characters; ends his other sessions",
        ),
        optional("currentpassword", Text, "the password until now; needed for a new one"),
    ])
    .answers(USER),
];

async fn list_users(call: Call) -> Result<Outcome, ApiError> {
    let mut rows = Vec::new();
    for found in visible(&call).await? {
        let is_wanted = call.text("username").is_none_or(|name| name == found.user.username)
            && call.text("account").is_none_or(|name| name == found.account.name)
            && list::is_id(call.id("domainid"), Some(found.domain.uuid))
            && call
                .number("accounttype")
                .is_none_or(|number| number == found.account.account_type)
            && list::matches(call.text("state"), "enabled");
        if is_wanted {
            rows.push(describe_user(&found));
        }
    }
    list::answer(&call, "user", rows)
}

/// Users that the caller may see.
async fn visible(call: &Call) -> Result<Vec<Identity>, ApiError> {
    let mut users = call.management.store.users().await?;
    let own = call.caller.identity.account.id;
    users.retain(|found| call.caller.is_admin() || found.account.id == own);
    Ok(users)
}

fn describe_user(found: &Identity) -> Value {
    let Identity { user, account, domain } = found;
    json!({
        "id": user.uuid,
        "username": user.username,
        "firstname": user.first_name,
        "lastname": user.last_name,
        "email": user.email,
        "created": date::format(user.created),
        "state": "enabled",
        "account": account.name,
        "accountid": account.uuid,
        "accounttype": account.account_type,
        "usersource": "native",
        "roletype": role(account.account_type).0,
        "rolename": role(account.account_type).1,
        "domainid": domain.uuid,
        "domain": domain.name,
        "timezone": user.timezone,
        "apikey": user.api_key,
        "isdefault": account.account_type == 1,
        "is2faenabled": false,
        "is2famandated": false,
    })
}

/// Type and name.
fn role(account_type: i64) -> (&'static str, &'static str) {
    match account_type {
        1 => ("Admin", "Root Admin"),
        2 => ("DomainAdmin", "Domain Admin"),
        _ => ("User", "User"),
    }
}

async fn list_accounts(call: Call) -> Result<Outcome, ApiError> {
    let users = visible(&call).await?;
    let domains = call.management.store.domains().await?;
    let mut rows = Vec::new();
    for account in call.management.store.accounts().await? {
        let domain = domains.iter().find(|domain| domain.id == account.domain);
        let own: Vec<Value> = users
            .iter()
            .filter(|user| user.account.id == account.id)
            .map(describe_user)
            .collect();
        let is_wanted = !own.is_empty()
            && list::is_id(call.id("domainid"), domain.map(|domain| domain.uuid))
            && call
                .number("accounttype")
                .is_none_or(|number| number == account.account_type)
            && list::matches(call.text("state"), "enabled");
        if is_wanted {
            rows.push(json!({
                "id": account.uuid,
                "name": account.name,
                "accounttype": account.account_type,
                "roletype": role(account.account_type).0,
                "rolename": role(account.account_type).1,
                "domainid": domain.map(|domain| domain.uuid),
                "domain": domain.map(|domain| &domain.name),
                "domainpath": domain.map(|domain| full_path(&domain.path)),
                "state": "enabled",
                "created": date::format(account.created),
                "isdefault": account.account_type == 1,
                "user": own,
            }));
        }
    }
    list::answer(&call, "account", rows)
}

async fn list_domains(call: Call) -> Result<Outcome, ApiError> {
    let domains = call.management.store.domains().await?;
    let mut rows = Vec::new();
    for domain in &domains {
        let level = domain.path.split('/').filter(|part| !part.is_empty()).count();
        let level = i64::try_from(level).unwrap_or(i64::MAX);
        let may_see = call.caller.is_admin() || domain.id == call.caller.identity.domain.id;
        if !may_see || call.number("level").is_some_and(|wanted| wanted != level) {
            continue;
        }
        let parent = domains.iter().find(|parent| Some(parent.id) == domain.parent);
        rows.push(json!({
            "id": domain.uuid,
            "name": domain.name,
            "level": level,
            "parentdomainid": parent.map(|parent| parent.uuid),
            "parentdomainname": parent.map(|parent| &parent.name),
            "haschild": domains.iter().any(|child| child.parent == Some(domain.id)),
            "path": full_path(&domain.path),
            "state": "Active",
            "created": date::format(domain.created),
        }));
    }
    list::answer(&call, "domain", rows)
}

/// `ROOT/sales` of `/sales`.
fn full_path(path: &str) -> String {
    format!("ROOT{path}").trim_end_matches('/').to_owned()
}

/// The user that `id` means, if the caller may touch him.
async fn user(call: &Call) -> Result<Identity, ApiError> {
    let id = call.needed_id("id")?;
    let found = call.management.store.user(id).await?;
    let found = found.filter(|found| call.caller.is_admin() || found.user.id == call.caller.identity.user.id);
    found.ok_or_else(|| ApiError::no_such_id("id", id))
}

async fn register_user_keys(call: Call) -> Result<Job, ApiError> {
    let found = user(&call).await?;
    let description = format!("making keys for user {}", found.user.username);
    let id = found.user.uuid;
    let work = async move {
        let (api_key, secret) = (random::url_safe(KEY_LEN), random::url_safe(KEY_LEN));
        let answer = json!({ "apikey": api_key, "secretkey": secret });
        call.management
            .store
            .set_user_keys(found.user.id, api_key, Secret::new(secret))
            .await?;
        Ok(Outcome::Object("userkeys", answer))
    };
    Ok(Job::new(description, work).on("User", id))
}

async fn get_user_keys(call: Call) -> Result<Outcome, ApiError> {
    let found = user(&call).await?;
    let keys = json!({
        "apikey": found.user.api_key,
        "secretkey": found.user.secret_key.as_ref().map(Secret::expose),
    });
    Ok(Outcome::Object("userkeys", keys))
}

async fn update_user(call: Call) -> Result<Outcome, ApiError> {
    let found = user(&call).await?;
    let text = |name| call.text(name).map(str::to_owned);
    let change = UserChange {
        username: text("username"),
        first_name: text("firstname"),
        last_name: text("lastname"),
        email: text("email"),
        timezone: text("timezone"),
        password_hash: new_password(&call, &found).await?,
    };
    let has_password = change.password_hash.is_some();
    call.management.store.update_user(found.user.id, change).await?;
    if has_password {
        let own_session = match &call.caller.proof {
            Proof::Session(id) => Some(id.clone()),
            _ => None,
        };
        call.management
            .store
            .end_other_sessions(found.user.id, own_session)
            .await?;
    }
    let what = if has_password {
        "user and his password changed"
    } else {
        "user changed"
    };
    call.record("USER.UPDATE", what, Some(("User", found.user.uuid)))
        .await?;
    let changed = call.management.store.identity(found.user.id).await?;
    Ok(Outcome::Object("user", describe_user(&changed)))
}

/// The hash of the password that is wanted. Who may open the server's socket needs no current one.
async fn new_password(call: &Call, found: &Identity) -> Result<Option<Secret<String>>, ApiError> {
    let Some(wanted) = call.text("password") else {
        return Ok(None);
    };
    if !password::LENGTHS.contains(&wanted.chars().count()) {
        let (from, to) = (password::LENGTHS.start(), password::LENGTHS.end());
        return Err(ApiError::parameter(format!("a password has {from} to {to} characters")));
    }
    if call.caller.proof != Proof::Socket {
        let current = call.text("currentpassword").ok_or_else(|| {
            ApiError::parameter("Unable to execute API command updateuser due to missing parameter currentpassword")
        })?;
        let current = Secret::new(current.to_owned());
        if current.expose() == wanted {
            return Err(ApiError::parameter("the new password is the current one"));
        }
        if !call
            .management
            .logins
            .verify(current, found.user.password_hash.clone())
            .await
        {
            return Err(ApiError::parameter("Current password is incorrect."));
        }
    }
    let wanted = Secret::new(wanted.to_owned());
    let hash = tokio::task::spawn_blocking(move || password::hash(&wanted)).await;
    hash.map(Some)
        .map_err(|_| ApiError::new(Code::Internal, "the password could not be hashed"))
}
