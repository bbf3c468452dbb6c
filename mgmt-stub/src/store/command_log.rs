//! Commands under way at SSVMs: their load (management.md §9).

use std::collections::HashMap;

use rusqlite::params;
use time::OffsetDateTime;

use super::id::{CommandLogId, HostId};
use super::row::now;
use super::{Store, StoreError};

impl Store {
    /// Before a counted command is sent to an SSVM.
    pub async fn command_sent(
        &self,
        host: HostId,
        instance: String,
        command: &'static str,
    ) -> Result<CommandLogId, StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO command_log (host_id, instance, command, created) VALUES (?, ?, ?, ?) RETURNING id";
            let params = params![host, instance, command, now()];
            Ok(transaction.query_row(sql, params, |row| row.get(0))?)
        })
        .await
    }

    /// Its work has ended, in whatever way.
    pub async fn command_ended(&self, id: CommandLogId) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute("DELETE FROM command_log WHERE id = ?", [id])?;
            Ok(())
        })
        .await
    }

    /// At the start of the server: nobody waits for an answer any more.
    pub async fn forget_commands(&self) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM command_log", [])?;
            Ok(())
        })
        .await
    }

    /// By host: commands that are not older than `since`.
    pub async fn active_commands(&self, since: OffsetDateTime) -> Result<HashMap<HostId, u32>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT host_id, count(*) FROM command_log WHERE created >= ? GROUP BY host_id";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([since.unix_timestamp()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
