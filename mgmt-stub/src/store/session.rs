//! Browser sessions. They survive a restart of the server: a page that is open goes on.

use rusqlite::{OptionalExtension, params};
use time::OffsetDateTime;

use super::account::{Identity, identity_by_id};
use super::id::UserId;
use super::row::{Seconds, now};
use super::{Store, StoreError};

/// Sessions of one user; of more the one unused for longest ends.
const MAX_SESSIONS: i64 = 64;

/// A session that was found.
#[derive(Clone, Debug)]
pub struct Session {
    /// SHA-256 of the session key, hexadecimal.
    pub key_hash: String,
    pub identity: Identity,
    pub last_used: OffsetDateTime,
}

impl Store {
    /// Adds a session; ends expired ones and those too many. Hashes are SHA-256, hexadecimal.
    pub async fn add_session(
        &self,
        id_hash: String,
        key_hash: String,
        user: UserId,
        expired_before: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let expired = expired_before.unix_timestamp();
            transaction.execute("DELETE FROM session WHERE last_used < ?", [expired])?;
            let sql = "INSERT INTO session (id_hash, key_hash, user_id, created, last_used) VALUES (?, ?, ?, ?, ?)";
            transaction.execute(sql, params![id_hash, key_hash, user, now(), now()])?;
            let sql = "DELETE FROM session WHERE user_id = ?1 AND id_hash <> ?2 AND id_hash NOT IN
                       (SELECT id_hash FROM session WHERE user_id = ?1 ORDER BY last_used DESC LIMIT ?3)";
            transaction.execute(sql, params![user, id_hash, MAX_SESSIONS])?;
            Ok(())
        })
        .await
    }

    pub async fn session(&self, id_hash: String) -> Result<Option<Session>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT key_hash, user_id, last_used FROM session WHERE id_hash = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get::<_, Seconds>(2)?.0));
            let Some((key_hash, user, last_used)) = statement.query_row([id_hash], read).optional()? else {
                return Ok(None);
            };
            let identity = identity_by_id(transaction, user)?;
            Ok(Some(Session {
                key_hash,
                identity,
                last_used,
            }))
        })
        .await
    }

    pub async fn touch_session(&self, id_hash: String) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE session SET last_used = ? WHERE id_hash = ?";
            transaction.execute(sql, params![now(), id_hash])?;
            Ok(())
        })
        .await
    }

    pub async fn end_session(&self, id_hash: String) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute("DELETE FROM session WHERE id_hash = ?", [id_hash])?;
            Ok(())
        })
        .await
    }

    /// Ends all sessions of a user, except the one named.
    pub async fn end_other_sessions(&self, user: UserId, except: Option<String>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "DELETE FROM session WHERE user_id = ? AND id_hash IS NOT ?";
            transaction.execute(sql, params![user, except])?;
            Ok(())
        })
        .await
    }
}
