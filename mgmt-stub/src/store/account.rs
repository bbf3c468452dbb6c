//! Domains, accounts and users: who may call the API, and how they prove it.

use protocol::secret::Secret;
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AccountId, DomainId, UserId};
use super::row::{Parsed, Seconds};
use super::{Store, StoreError};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    pub id: DomainId,
    pub uuid: Uuid,
    pub parent: Option<DomainId>,
    pub name: String,
    /// `/` for ROOT.
    pub path: String,
    pub created: OffsetDateTime,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub id: AccountId,
    pub uuid: Uuid,
    pub domain: DomainId,
    pub name: String,
    /// 0 user, 1 root administrator, 2 domain administrator.
    pub account_type: i64,
    pub created: OffsetDateTime,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    pub id: UserId,
    pub uuid: Uuid,
    pub account: AccountId,
    pub username: String,
    pub first_name: String,
    pub last_name: String,
    pub email: Option<String>,
    pub timezone: Option<String>,
    /// As `password` makes it; without one nobody can log in with this name.
    pub password_hash: Option<Secret<String>>,
    /// Of a one-time password; `None` for one that its owner has chosen.
    pub password_logins_left: Option<i64>,
    pub password_change_required: bool,
    pub api_key: Option<String>,
    pub secret_key: Option<Secret<String>>,
    pub created: OffsetDateTime,
}

/// A user with what it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub user: User,
    pub account: Account,
    pub domain: Domain,
}

/// What `updateUser` changes; `None` leaves it.
#[derive(Clone, Default, Debug)]
pub struct UserChange {
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub email: Option<String>,
    pub timezone: Option<String>,
    /// The hash of a password that its owner has chosen.
    pub password_hash: Option<Secret<String>>,
}

impl Store {
    pub async fn domains(&self) -> Result<Vec<Domain>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM domain ORDER BY id")?;
            Ok(statement.query_map([], domain)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM account ORDER BY id")?;
            Ok(statement.query_map([], account)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// All users with their accounts and domains, by id.
    pub async fn users(&self) -> Result<Vec<Identity>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM user ORDER BY id")?;
            let users = statement.query_map([], user)?.collect::<Result<Vec<_>, _>>()?;
            users.into_iter().map(|user| identity(transaction, user)).collect()
        })
        .await
    }

    /// The administrator that the first migration has made.
    pub async fn administrator(&self) -> Result<Identity, StoreError> {
        self.read(|transaction| {
            let sql = "SELECT min(id) FROM user";
            let id = transaction.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            identity_by_id(transaction, id)
        })
        .await
    }

    /// Who a row number is.
    pub async fn identity(&self, user: UserId) -> Result<Identity, StoreError> {
        self.read(move |transaction| identity_by_id(transaction, user)).await
    }

    pub async fn user(&self, uuid: Uuid) -> Result<Option<Identity>, StoreError> {
        self.find_user("SELECT * FROM user WHERE uuid = ?", uuid.to_string())
            .await
    }

    pub async fn user_by_api_key(&self, key: impl Into<String>) -> Result<Option<Identity>, StoreError> {
        self.find_user("SELECT * FROM user WHERE api_key = ?", key.into()).await
    }

    /// The user of this name in the domain with this path.
    pub async fn user_by_name(&self, name: impl Into<String>, path: String) -> Result<Option<Identity>, StoreError> {
        let name = name.into();
        self.read(move |transaction| {
            let sql = "SELECT u.* FROM user u JOIN account a ON a.id = u.account_id JOIN domain d ON d.id = a.domain_id
                       WHERE u.username = ? AND d.path = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            let found = statement.query_row([name, path], user).optional()?;
            found.map(|user| identity(transaction, user)).transpose()
        })
        .await
    }

    async fn find_user(&self, sql: &'static str, word: String) -> Result<Option<Identity>, StoreError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(sql)?;
            let found = statement.query_row([word], user).optional()?;
            found.map(|user| identity(transaction, user)).transpose()
        })
        .await
    }

    /// Takes one login off a one-time password. `false`: none was left.
    pub async fn use_password(&self, id: UserId) -> Result<bool, StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE user SET password_logins_left = password_logins_left - 1
                       WHERE id = ? AND (password_logins_left IS NULL OR password_logins_left > 0)";
            Ok(transaction.execute(sql, [id])? == 1)
        })
        .await
    }

    /// A password for one login, after which its owner has to choose another. Ends the user's sessions.
    pub async fn set_one_time_password(&self, id: UserId, hash: Secret<String>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE user SET password_hash = ?, password_logins_left = 1, password_change_required = 1
                       WHERE id = ?";
            transaction.execute(sql, params![hash.expose(), id])?;
            transaction.execute("DELETE FROM session WHERE user_id = ?", [id])?;
            Ok(())
        })
        .await
    }

    pub async fn update_user(&self, id: UserId, change: UserChange) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE user SET
                           username = coalesce(:username, username), first_name = coalesce(:first_name, first_name),
                           last_name = coalesce(:last_name, last_name), email = coalesce(:email, email),
                           timezone = coalesce(:timezone, timezone),
                           password_hash = coalesce(:hash, password_hash),
                           password_logins_left = CASE WHEN :hash IS NULL THEN password_logins_left END,
                           password_change_required = CASE WHEN :hash IS NULL THEN password_change_required ELSE 0 END
                       WHERE id = :id";
            let params = named_params! {
                ":id": id, ":username": change.username, ":first_name": change.first_name,
                ":last_name": change.last_name, ":email": change.email, ":timezone": change.timezone,
                ":hash": change.password_hash.as_ref().map(Secret::expose),
            };
            transaction.execute(sql, params)?;
            Ok(())
        })
        .await
    }

    /// New keys for the API in place of old ones.
    pub async fn set_user_keys(&self, id: UserId, api_key: String, secret: Secret<String>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE user SET api_key = ?, secret_key = ? WHERE id = ?";
            transaction.execute(sql, params![api_key, secret.expose(), id])?;
            Ok(())
        })
        .await
    }
}

/// The user with this row number and what it belongs to.
pub(super) fn identity_by_id(transaction: &Transaction<'_>, id: UserId) -> Result<Identity, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT * FROM user WHERE id = ?")?;
    let user = statement.query_row([id], user)?;
    identity(transaction, user)
}

fn identity(transaction: &Transaction<'_>, user: User) -> Result<Identity, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT * FROM account WHERE id = ?")?;
    let account = statement.query_row([user.account], account)?;
    let mut statement = transaction.prepare_cached("SELECT * FROM domain WHERE id = ?")?;
    let domain = statement.query_row([account.domain], domain)?;
    Ok(Identity { user, account, domain })
}

fn domain(row: &Row<'_>) -> rusqlite::Result<Domain> {
    Ok(Domain {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        parent: row.get("parent_id")?,
        name: row.get("name")?,
        path: row.get("path")?,
        created: row.get::<_, Seconds>("created")?.0,
    })
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        domain: row.get("domain_id")?,
        name: row.get("name")?,
        account_type: row.get("type")?,
        created: row.get::<_, Seconds>("created")?.0,
    })
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        account: row.get("account_id")?,
        username: row.get("username")?,
        first_name: row.get("first_name")?,
        last_name: row.get("last_name")?,
        email: row.get("email")?,
        timezone: row.get("timezone")?,
        password_hash: row.get::<_, Option<String>>("password_hash")?.map(Secret::new),
        password_logins_left: row.get("password_logins_left")?,
        password_change_required: row.get("password_change_required")?,
        api_key: row.get("api_key")?,
        secret_key: row.get::<_, Option<String>>("secret_key")?.map(Secret::new),
        created: row.get::<_, Seconds>("created")?.0,
    })
}
