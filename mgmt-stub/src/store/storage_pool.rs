//! Primary storage: where disks of VMs are, and which templates have been copied to it.

use rusqlite::{OptionalExtension, Row, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{StoragePoolId, TemplateId, ZoneId};
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};

/// A directory of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoragePool {
    pub id: StoragePoolId,
    pub uuid: Uuid,
    pub zone: ZoneId,
    pub name: String,
    /// Absolute.
    pub path: String,
    pub created: OffsetDateTime,
}

/// The copy of a template on a pool; it is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateOnPool {
    pub template: TemplateId,
    pub pool: StoragePoolId,
    /// Relative to the pool.
    pub path: String,
    /// Virtual, in bytes.
    pub size: i64,
    /// Of the file, in bytes.
    pub physical_size: i64,
}

impl Store {
    /// Adds the zone's pool of this name, or says where it is now.
    pub async fn add_storage_pool(
        &self,
        zone: ZoneId,
        name: impl Into<String>,
        path: impl Into<String>,
    ) -> Result<StoragePool, StoreError> {
        let (name, path) = (name.into(), path.into());
        self.write(move |transaction| {
            let sql = "INSERT INTO storage_pool (uuid, zone_id, name, path, created)
                       VALUES (:uuid, :zone, :name, :path, :now)
                       ON CONFLICT (zone_id, name) DO UPDATE SET path = excluded.path
                       RETURNING *";
            let uuid = Uuid::new_v4().to_string();
            let params = named_params! { ":uuid": uuid, ":zone": zone, ":name": name, ":path": path, ":now": now() };
            Ok(transaction.query_row(sql, params, pool)?)
        })
        .await
    }

    /// Oldest first.
    pub async fn storage_pools(&self) -> Result<Vec<StoragePool>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM storage_pool ORDER BY id")?;
            Ok(statement.query_map([], pool)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// A copy is complete.
    pub async fn add_template_on_pool(&self, copy: TemplateOnPool) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO template_pool (template_id, pool_id, path, size, physical_size, created)
                       VALUES (?, ?, ?, ?, ?, ?)
                       ON CONFLICT DO UPDATE SET path = excluded.path, size = excluded.size,
                           physical_size = excluded.physical_size, created = excluded.created";
            let TemplateOnPool {
                template,
                pool,
                path,
                size,
                physical_size,
            } = copy;
            transaction.execute(sql, params![template, pool, path, size, physical_size, now()])?;
            Ok(())
        })
        .await
    }

    /// The copy of a template, if there is one.
    pub async fn template_on_pool(
        &self,
        template: TemplateId,
        pool: StoragePoolId,
    ) -> Result<Option<TemplateOnPool>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM template_pool WHERE template_id = ? AND pool_id = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_row(params![template, pool], on_pool).optional()?)
        })
        .await
    }

    /// All copies on a pool.
    pub async fn templates_on_pool(&self, pool: StoragePoolId) -> Result<Vec<TemplateOnPool>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM template_pool WHERE pool_id = ? ORDER BY template_id";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_map([pool], on_pool)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Copies that no disk needs and whose template is gone.
    pub async fn unused_templates_on_pool(&self, pool: StoragePoolId) -> Result<Vec<TemplateOnPool>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT tp.* FROM template_pool tp JOIN template t ON t.id = tp.template_id
                       WHERE tp.pool_id = ? AND t.removed IS NOT NULL AND NOT EXISTS (
                           SELECT 1 FROM volume v WHERE v.template_id = tp.template_id AND v.removed IS NULL)";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_map([pool], on_pool)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Forgets a copy, unless a disk needs it; says whether it did.
    pub async fn remove_template_on_pool(&self, template: TemplateId, pool: StoragePoolId) -> Result<bool, StoreError> {
        self.write(move |transaction| {
            let sql = "DELETE FROM template_pool WHERE template_id = ? AND pool_id = ? AND NOT EXISTS (
                           SELECT 1 FROM volume v WHERE v.template_id = template_pool.template_id
                               AND v.removed IS NULL)";
            Ok(transaction.execute(sql, params![template, pool])? > 0)
        })
        .await
    }
}

fn pool(row: &Row<'_>) -> rusqlite::Result<StoragePool> {
    Ok(StoragePool {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        zone: row.get("zone_id")?,
        name: row.get("name")?,
        path: row.get("path")?,
        created: row.get::<_, Seconds>("created")?.0,
    })
}

fn on_pool(row: &Row<'_>) -> rusqlite::Result<TemplateOnPool> {
    Ok(TemplateOnPool {
        template: row.get("template_id")?,
        pool: row.get("pool_id")?,
        path: row.get("path")?,
        size: row.get("size")?,
        physical_size: row.get("physical_size")?,
    })
}
