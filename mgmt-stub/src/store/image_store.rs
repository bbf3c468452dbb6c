//! Secondary storage that SSVMs mount.

use rusqlite::{Row, named_params, params};
use uuid::Uuid;

use super::id::{ImageStoreId, ZoneId};
use super::row::{Parsed, Seconds};
use super::{Store, StoreError};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageStore {
    pub id: ImageStoreId,
    pub uuid: Uuid,
    pub zone: ZoneId,
    pub name: String,
    /// Such as `nfs://10.1.4.2/export/secondary`.
    pub url: String,
    pub nfs_version: Option<String>,
    /// Where this machine has it, for `ssvm` processes: they use the directory instead of mounting the URL.
    pub local_directory: Option<String>,
    /// As an SSVM said last.
    pub used_bytes: Option<i64>,
    /// As an SSVM said last.
    pub total_bytes: Option<i64>,
    /// The directory an SSVM mounted it on: `_dir` of its SecStorageSetupAnswer.
    pub parent: Option<String>,
    pub removed: Option<time::OffsetDateTime>,
}

impl Store {
    /// Adds the store, or brings the one with this URL up to date.
    pub async fn add_image_store(
        &self,
        zone: ZoneId,
        name: impl Into<String>,
        url: impl Into<String>,
        nfs_version: Option<String>,
    ) -> Result<ImageStore, StoreError> {
        let (name, url) = (name.into(), url.into());
        self.write(move |transaction| {
            let sql = "INSERT INTO image_store (uuid, zone_id, name, url, nfs_version)
                       VALUES (:uuid, :zone, :name, :url, :nfs_version)
                       ON CONFLICT (zone_id, url) WHERE removed IS NULL
                       DO UPDATE SET name = excluded.name, nfs_version = excluded.nfs_version
                       RETURNING *";
            let uuid = Uuid::new_v4().to_string();
            let params = named_params! {
                ":uuid": uuid, ":zone": zone, ":name": name, ":url": url, ":nfs_version": nfs_version,
            };
            Ok(transaction.query_row(sql, params, image_store)?)
        })
        .await
    }

    pub async fn image_stores(&self, zone: ZoneId) -> Result<Vec<ImageStore>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM image_store WHERE zone_id = ? AND removed IS NULL ORDER BY id";
            let mut statement = transaction.prepare(sql)?;
            Ok(statement.query_map([zone], image_store)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Where this machine has the store.
    pub async fn set_image_store_directory(&self, store: ImageStoreId, directory: String) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE image_store SET local_directory = ? WHERE id = ?";
            transaction.execute(sql, params![directory, store])?;
            Ok(())
        })
        .await
    }

    /// What an SSVM says of its size.
    pub async fn set_image_store_size(&self, store: ImageStoreId, used: i64, total: i64) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE image_store SET used_bytes = ?, total_bytes = ? WHERE id = ?";
            transaction.execute(sql, params![used, total, store])?;
            Ok(())
        })
        .await
    }

    pub async fn set_image_store_parent(
        &self,
        store: ImageStoreId,
        directory: impl Into<String>,
    ) -> Result<(), StoreError> {
        let directory = directory.into();
        self.write(move |transaction| {
            transaction.execute(
                "UPDATE image_store SET parent = ? WHERE id = ?",
                params![directory, store],
            )?;
            Ok(())
        })
        .await
    }
}

fn image_store(row: &Row<'_>) -> rusqlite::Result<ImageStore> {
    Ok(ImageStore {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        zone: row.get("zone_id")?,
        name: row.get("name")?,
        url: row.get("url")?,
        nfs_version: row.get("nfs_version")?,
        local_directory: row.get("local_directory")?,
        used_bytes: row.get("used_bytes")?,
        total_bytes: row.get("total_bytes")?,
        parent: row.get("parent")?,
        removed: row.get::<_, Option<Seconds>>("removed")?.map(|seconds| seconds.0),
    })
}
