//! VMs of users that we run: what they are made of, and their disks.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension, Row, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AccountId, InstanceId, StoragePoolId, TemplateId, UserId, VolumeId};
use super::row::{Parsed, Seconds, moment, now};
use super::{Store, StoreError};

/// What an instance of a user has besides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserVm {
    pub instance: InstanceId,
    /// `name` in the API.
    pub host_name: String,
    /// Who deployed it.
    pub user: UserId,
    pub template: TemplateId,
    /// UUID of its service offering.
    pub offering: Uuid,
}

/// Whether a disk has a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VolumeState {
    /// Not yet.
    Allocated,
    /// Yes.
    Ready,
}

/// The text is no state.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a state of a volume; there are Allocated and Ready")]
pub struct BadVolumeState(String);

/// A root disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    pub id: VolumeId,
    pub uuid: Uuid,
    pub name: String,
    pub instance: InstanceId,
    pub template: TemplateId,
    pub pool: StoragePoolId,
    pub account: AccountId,
    pub state: VolumeState,
    /// Virtual, in bytes.
    pub size: Option<i64>,
    /// Relative to the pool.
    pub path: Option<String>,
    pub created: OffsetDateTime,
    pub removed: Option<OffsetDateTime>,
}

impl Store {
    /// Makes an instance a VM of ours, with a root disk that has no file yet.
    pub async fn add_user_vm(
        &self,
        vm: UserVm,
        account: AccountId,
        pool: StoragePoolId,
        size: Option<i64>,
    ) -> Result<Volume, StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO user_vm (instance_id, host_name, user_id, template_id, offering)
                       VALUES (?, ?, ?, ?, ?)";
            let offering = vm.offering.to_string();
            transaction.execute(sql, params![vm.instance, vm.host_name, vm.user, vm.template, offering])?;
            let sql = "INSERT INTO volume (uuid, name, instance_id, template_id, pool_id, account_id, state, size,
                           created)
                       VALUES (:uuid, :name, :instance, :template, :pool, :account, :state, :size, :now)
                       RETURNING *";
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(),
                ":name": format!("ROOT-{}", vm.instance),
                ":instance": vm.instance,
                ":template": vm.template,
                ":pool": pool,
                ":account": account,
                ":state": VolumeState::Allocated.as_str(),
                ":size": size,
                ":now": now(),
            };
            Ok(transaction.query_row(sql, params, volume)?)
        })
        .await
    }

    /// `None`: somebody else runs the instance, or it is a system VM.
    pub async fn user_vm(&self, instance: InstanceId) -> Result<Option<UserVm>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM user_vm WHERE instance_id = ?";
            Ok(transaction
                .prepare_cached(sql)?
                .query_row([instance], user_vm)
                .optional()?)
        })
        .await
    }

    /// Those of instances that are not removed.
    pub async fn user_vms(&self) -> Result<BTreeMap<InstanceId, UserVm>, StoreError> {
        self.read(|transaction| {
            let sql = "SELECT u.* FROM user_vm u JOIN instance i ON i.id = u.instance_id WHERE i.removed IS NULL";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([], user_vm)?;
            rows.map(|row| row.map(|row| (row.instance, row)).map_err(StoreError::from))
                .collect()
        })
        .await
    }

    /// All that are not removed, oldest first.
    pub async fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        self.read(|transaction| {
            let sql = "SELECT * FROM volume WHERE removed IS NULL ORDER BY id";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_map([], volume)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The root disk of an instance.
    pub async fn root_volume(&self, instance: InstanceId) -> Result<Option<Volume>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM volume WHERE instance_id = ? AND removed IS NULL";
            Ok(transaction
                .prepare_cached(sql)?
                .query_row([instance], volume)
                .optional()?)
        })
        .await
    }

    /// Its file is there.
    pub async fn volume_ready(&self, id: VolumeId, path: String, size: i64) -> Result<Volume, StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE volume SET state = ?, path = ?, size = ? WHERE id = ? RETURNING *";
            let params = params![VolumeState::Ready.as_str(), path, size, id];
            Ok(transaction.query_row(sql, params, volume)?)
        })
        .await
    }

    /// Its file is gone.
    pub async fn remove_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute("UPDATE volume SET removed = ? WHERE id = ?", params![now(), id])?;
            Ok(())
        })
        .await
    }
}

fn user_vm(row: &Row<'_>) -> rusqlite::Result<UserVm> {
    Ok(UserVm {
        instance: row.get("instance_id")?,
        host_name: row.get("host_name")?,
        user: row.get("user_id")?,
        template: row.get("template_id")?,
        offering: row.get::<_, Parsed<_>>("offering")?.0,
    })
}

fn volume(row: &Row<'_>) -> rusqlite::Result<Volume> {
    Ok(Volume {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        name: row.get("name")?,
        instance: row.get("instance_id")?,
        template: row.get("template_id")?,
        pool: row.get("pool_id")?,
        account: row.get("account_id")?,
        state: row.get::<_, Parsed<_>>("state")?.0,
        size: row.get("size")?,
        path: row.get("path")?,
        created: row.get::<_, Seconds>("created")?.0,
        removed: moment(row, "removed")?,
    })
}

impl VolumeState {
    /// CloudStack's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allocated => "Allocated",
            Self::Ready => "Ready",
        }
    }
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for VolumeState {
    type Err = BadVolumeState;

    fn from_str(text: &str) -> Result<Self, BadVolumeState> {
        let found = [Self::Allocated, Self::Ready]
            .into_iter()
            .find(|state| state.as_str() == text);
        found.ok_or_else(|| BadVolumeState(text.to_owned()))
    }
}
