//! Console sessions: who asked for which screen, who came, and when it ended (console-proxy.md §11).

use rusqlite::{OptionalExtension, Row, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AccountId, ConsoleSessionId, InstanceId, UserId};
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};

/// A console session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsoleSession {
    pub id: ConsoleSessionId,
    pub uuid: Uuid,
    pub account: AccountId,
    pub user: UserId,
    pub instance: InstanceId,
    /// Name of the CPVM.
    pub proxy: String,
    /// Address of who asked for it.
    pub creator_address: Option<String>,
    /// Address of who came.
    pub client_address: Option<String>,
    pub created: OffsetDateTime,
    /// When somebody came.
    pub acquired: Option<OffsetDateTime>,
    /// When it ended.
    pub removed: Option<OffsetDateTime>,
}

/// What a new session is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewConsoleSession {
    pub uuid: Uuid,
    pub account: AccountId,
    pub user: UserId,
    pub instance: InstanceId,
    pub proxy: String,
    pub creator_address: Option<String>,
}

impl Store {
    pub async fn create_console_session(&self, new: NewConsoleSession) -> Result<ConsoleSession, StoreError> {
        self.write(move |transaction| {
            let sql =
                "INSERT INTO console_session (uuid, account_id, user_id, instance_id, proxy, creator_address, created)
                       VALUES (:uuid, :account, :user, :instance, :proxy, :creator, :now) RETURNING *";
            let params = named_params! {
                ":uuid": new.uuid.to_string(), ":account": new.account, ":user": new.user,
                ":instance": new.instance, ":proxy": new.proxy, ":creator": new.creator_address, ":now": now(),
            };
            Ok(transaction.query_row(sql, params, console_session)?)
        })
        .await
    }

    /// Takes a session for one viewer. `None` when it is unknown, ended, or was taken before: of many who try at the
    /// same time one gets it.
    pub async fn acquire_console_session(
        &self,
        uuid: Uuid,
        client: Option<String>,
    ) -> Result<Option<ConsoleSession>, StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE console_session SET acquired = ?, client_address = ?
                       WHERE uuid = ? AND acquired IS NULL AND removed IS NULL RETURNING *";
            let params = params![now(), client, uuid.to_string()];
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_row(params, console_session).optional()?)
        })
        .await
    }

    /// Ends sessions of this proxy. Unknown ones are nothing to worry about.
    pub async fn end_console_sessions(&self, proxy: String, uuids: Vec<Uuid>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE console_session SET removed = ? WHERE uuid = ? AND proxy = ? AND removed IS NULL";
            let mut statement = transaction.prepare_cached(sql)?;
            for uuid in uuids {
                statement.execute(params![now(), uuid.to_string(), proxy])?;
            }
            Ok(())
        })
        .await
    }

    /// All that are kept, newest first.
    pub async fn console_sessions(&self) -> Result<Vec<ConsoleSession>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM console_session ORDER BY id DESC")?;
            Ok(statement.query_map([], console_session)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The proxy that showed this instance's console last, and when it was given to it.
    pub async fn last_proxy(&self, instance: InstanceId) -> Result<Option<(String, OffsetDateTime)>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT proxy, created FROM console_session WHERE instance_id = ? ORDER BY id DESC LIMIT 1";
            let mut statement = transaction.prepare_cached(sql)?;
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Seconds>(1)?.0));
            Ok(statement.query_row([instance], read).optional()?)
        })
        .await
    }

    /// Whether a viewer of this session is, or may still come, at this proxy.
    pub async fn has_console_session(&self, instance: InstanceId, proxy: String) -> Result<bool, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT EXISTS (SELECT 1 FROM console_session
                           WHERE instance_id = ? AND proxy = ? AND removed IS NULL AND acquired IS NOT NULL)";
            Ok(transaction.query_row(sql, params![instance, proxy], |row| row.get(0))?)
        })
        .await
    }

    /// Forgets sessions that were made before this moment. Says how many.
    pub async fn purge_console_sessions(&self, before: OffsetDateTime) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let sql = "DELETE FROM console_session WHERE created < ?";
            Ok(transaction.execute(sql, [before.unix_timestamp()])?)
        })
        .await
    }
}

fn console_session(row: &Row<'_>) -> rusqlite::Result<ConsoleSession> {
    let moment = |column| -> rusqlite::Result<Option<OffsetDateTime>> {
        Ok(row.get::<_, Option<Seconds>>(column)?.map(|seconds| seconds.0))
    };
    Ok(ConsoleSession {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        account: row.get("account_id")?,
        user: row.get("user_id")?,
        instance: row.get("instance_id")?,
        proxy: row.get("proxy")?,
        creator_address: row.get("creator_address")?,
        client_address: row.get("client_address")?,
        created: row.get::<_, Seconds>("created")?.0,
        acquired: moment("acquired")?,
        removed: moment("removed")?,
    })
}
