//! Jobs: what an asynchronous command has promised, and what became of it (management.md §17.6).

use rusqlite::{OptionalExtension, Row, named_params, params};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{JobId, UserId};
use super::row::{Parsed, Seconds, moment, now};
use super::{Store, StoreError};

/// The numbers of the API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobStatus {
    Pending,
    Success,
    Failed,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    pub id: JobId,
    pub uuid: Uuid,
    pub user: UserId,
    /// The command's name, such as `destroySystemVm`.
    pub command: String,
    pub status: JobStatus,
    /// 530 for failures, as CloudStack has it.
    pub result_code: i64,
    pub result: Option<Value>,
    /// Of what it works on, such as `SystemVm`.
    pub instance_type: Option<String>,
    pub instance: Option<Uuid>,
    pub created: OffsetDateTime,
    pub completed: Option<OffsetDateTime>,
}

impl Store {
    /// A job that is pending.
    pub async fn add_job(
        &self,
        user: UserId,
        command: &'static str,
        instance: Option<(&'static str, Uuid)>,
    ) -> Result<Job, StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO job (uuid, user_id, command, status, instance_type, instance_id, created)
                       VALUES (:uuid, :user, :command, 0, :type, :instance, :now) RETURNING *";
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(), ":user": user, ":command": command,
                ":type": instance.map(|(kind, _)| kind),
                ":instance": instance.map(|(_, uuid)| uuid.to_string()),
                ":now": now(),
            };
            Ok(transaction.query_row(sql, params, job)?)
        })
        .await
    }

    /// A job that has ended stays as it is.
    pub async fn finish_job(&self, id: JobId, result: Result<Value, (i64, Value)>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let (status, code, result) = match result {
                Ok(result) => (JobStatus::Success, 0, result),
                Err((code, result)) => (JobStatus::Failed, code, result),
            };
            let sql =
                "UPDATE job SET status = ?, result_code = ?, result = ?, completed = ? WHERE id = ? AND status = 0";
            let params = params![status.number(), code, result.to_string(), now(), id];
            transaction.execute(sql, params)?;
            Ok(())
        })
        .await
    }

    /// At the start of the server: what was pending will never end by itself. Says how many that were.
    pub async fn cancel_pending_jobs(&self, result_code: i64, result: Value) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE job SET status = 2, result_code = ?, result = ?, completed = ? WHERE status = 0";
            Ok(transaction.execute(sql, params![result_code, result.to_string(), now()])?)
        })
        .await
    }

    pub async fn job(&self, uuid: Uuid) -> Result<Option<Job>, StoreError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM job WHERE uuid = ?")?;
            Ok(statement.query_row([uuid.to_string()], job).optional()?)
        })
        .await
    }

    /// The newest that works, or worked, on this.
    pub async fn job_of_instance(&self, instance: String) -> Result<Option<Job>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM job WHERE instance_id = ? ORDER BY id DESC LIMIT 1";
            Ok(transaction.query_row(sql, [instance], job).optional()?)
        })
        .await
    }

    /// Those that are pending, the oldest first.
    pub async fn pending_jobs(&self) -> Result<Vec<Job>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM job WHERE status = 0 ORDER BY id")?;
            Ok(statement.query_map([], job)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Forgets what ended before.
    pub async fn purge_jobs(&self, before: OffsetDateTime) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            Ok(transaction.execute("DELETE FROM job WHERE completed < ?", [before.unix_timestamp()])?)
        })
        .await
    }
}

impl JobStatus {
    /// As the API and the table have it.
    pub fn number(self) -> i64 {
        match self {
            Self::Pending => 0,
            Self::Success => 1,
            Self::Failed => 2,
        }
    }
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let status = match row.get::<_, i64>("status")? {
        0 => JobStatus::Pending,
        1 => JobStatus::Success,
        _ => JobStatus::Failed,
    };
    Ok(Job {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        user: row.get("user_id")?,
        command: row.get("command")?,
        status,
        result_code: row.get("result_code")?,
        result: row.get::<_, Option<Parsed<Value>>>("result")?.map(|value| value.0),
        instance_type: row.get("instance_type")?,
        instance: row.get::<_, Option<Parsed<Uuid>>>("instance_id")?.map(|uuid| uuid.0),
        created: row.get::<_, Seconds>("created")?.0,
        completed: moment(row, "completed")?,
    })
}
