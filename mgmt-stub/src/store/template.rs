//! Templates and ISOs, and how far each is on each image store.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension, Row, named_params, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AccountId, ImageStoreId, TemplateId, TemplateStoreId, ZoneId};
use super::row::{Milliseconds, Parsed, Seconds, now};
use super::{Store, StoreError};
use crate::download_state::{DownloadEvent, DownloadState};

/// A template is a disk to start from, an ISO a medium to put in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TemplateKind {
    Template,
    Iso,
}

/// The text is neither.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a kind of template; there are TEMPLATE and ISO")]
pub struct BadTemplateKind(String);

/// What its owner says of a template.
#[expect(clippy::struct_excessive_bools, reason = "the members are given by the API")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateFacts {
    pub kind: TemplateKind,
    pub name: String,
    pub display_text: String,
    /// CloudStack's spelling, such as `QCOW2`.
    pub format: String,
    pub hypervisor: String,
    pub url: String,
    /// `{ALGORITHM}hex`.
    pub checksum: Option<String>,
    pub arch: String,
    /// 32 or 64.
    pub bits: u32,
    /// UUID of the guest's operating system type.
    pub os_type: Option<String>,
    pub template_tag: Option<String>,
    pub details: BTreeMap<String, String>,
    pub account: AccountId,
    pub zone: ZoneId,
    pub is_public: bool,
    pub is_featured: bool,
    pub is_extractable: bool,
    pub is_bootable: bool,
    pub requires_hvm: bool,
    pub password_enabled: bool,
    pub ssh_key_enabled: bool,
    pub dynamically_scalable: bool,
}

/// A template or ISO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    pub id: TemplateId,
    pub uuid: Uuid,
    /// On stores: file names are made of it.
    pub unique_name: String,
    pub facts: TemplateFacts,
    pub created: OffsetDateTime,
    pub removed: Option<OffsetDateTime>,
}

/// A template on an image store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateStore {
    pub id: TemplateStoreId,
    pub template: TemplateId,
    pub store: ImageStoreId,
    pub state: DownloadState,
    pub progress: Progress,
    /// The download that this is: 1 for the first attempt.
    pub attempt: u32,
    /// When a failed download is tried again.
    pub next_attempt: Option<OffsetDateTime>,
    pub updated: OffsetDateTime,
}

/// What is known of a download.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    pub percent: u8,
    /// Why it is not downloaded, or what the agent is doing.
    pub error: Option<String>,
    /// Of the SSVM.
    pub job: Option<String>,
    /// Relative to the store.
    pub install_path: Option<String>,
    /// Virtual, in bytes.
    pub size: Option<i64>,
    /// Of the file, in bytes.
    pub physical_size: Option<i64>,
    /// As found.
    pub checksum: Option<String>,
    /// Received by now.
    pub bytes: i64,
    /// Bytes per second.
    pub rate: Option<i64>,
}

/// A template with its rows on stores.
pub type TemplateOnStores = (Template, Vec<TemplateStore>);

impl Store {
    /// Adds a template that is to be downloaded to these stores.
    pub async fn create_template(
        &self,
        facts: TemplateFacts,
        stores: Vec<ImageStoreId>,
    ) -> Result<TemplateOnStores, StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO template (uuid, kind, name, display_text, unique_name, format, hypervisor, url,
                           checksum, arch, bits, os_type, template_tag, details, account_id, zone_id, is_public,
                           is_featured, is_extractable, is_bootable, requires_hvm, password_enabled, ssh_key_enabled,
                           dynamically_scalable, created)
                       VALUES (:uuid, :kind, :name, :display_text, '', :format, :hypervisor, :url, :checksum, :arch,
                           :bits, :os_type, :tag, :details, :account, :zone, :public, :featured, :extractable,
                           :bootable, :hvm, :password, :ssh_key, :scalable, :now)
                       RETURNING id";
            let params = named_params! {
                ":uuid": Uuid::new_v4().to_string(),
                ":kind": facts.kind.as_str(),
                ":name": facts.name,
                ":display_text": facts.display_text,
                ":format": facts.format,
                ":hypervisor": facts.hypervisor,
                ":url": facts.url,
                ":checksum": facts.checksum,
                ":arch": facts.arch,
                ":bits": facts.bits,
                ":os_type": facts.os_type,
                ":tag": facts.template_tag,
                ":details": serde_json::json!(facts.details).to_string(),
                ":account": facts.account,
                ":zone": facts.zone,
                ":public": facts.is_public,
                ":featured": facts.is_featured,
                ":extractable": facts.is_extractable,
                ":bootable": facts.is_bootable,
                ":hvm": facts.requires_hvm,
                ":password": facts.password_enabled,
                ":ssh_key": facts.ssh_key_enabled,
                ":scalable": facts.dynamically_scalable,
                ":now": now(),
            };
            let id: TemplateId = transaction.query_row(sql, params, |row| row.get(0))?;
            let unique_name = format!("{id}-{}-{}", facts.account, Uuid::new_v4());
            let sql = "UPDATE template SET unique_name = ? WHERE id = ? RETURNING *";
            let created = transaction.query_row(sql, params![unique_name, id], template)?;
            let sql =
                "INSERT INTO template_store (template_id, store_id, state, updated) VALUES (?, ?, ?, ?) RETURNING *";
            let mut statement = transaction.prepare_cached(sql)?;
            let state = DownloadState::NotDownloaded.as_str();
            let rows = stores
                .into_iter()
                .map(|store| statement.query_row(params![id, store, state, now()], template_store));
            Ok((created, rows.collect::<Result<_, _>>()?))
        })
        .await
    }

    /// All that are not removed, oldest first, with their rows.
    pub async fn templates(&self) -> Result<Vec<TemplateOnStores>, StoreError> {
        self.read(|transaction| {
            let mut rows: BTreeMap<TemplateId, Vec<TemplateStore>> = BTreeMap::new();
            let sql = "SELECT ts.* FROM template_store ts JOIN template t ON t.id = ts.template_id
                       WHERE t.removed IS NULL ORDER BY ts.id";
            let mut statement = transaction.prepare_cached(sql)?;
            for row in statement.query_map([], template_store)? {
                let row = row?;
                rows.entry(row.template).or_default().push(row);
            }
            let mut statement =
                transaction.prepare_cached("SELECT * FROM template WHERE removed IS NULL ORDER BY id")?;
            let templates = statement.query_map([], template)?;
            templates
                .map(|template| {
                    let template = template?;
                    let on_stores = rows.remove(&template.id).unwrap_or_default();
                    Ok((template, on_stores))
                })
                .collect()
        })
        .await
    }

    /// Those that are removed, newest first; for what may be left of them on stores.
    pub async fn deleted_templates(&self) -> Result<Vec<Template>, StoreError> {
        self.read(|transaction| {
            let sql = "SELECT * FROM template WHERE removed IS NOT NULL ORDER BY id DESC LIMIT 10000";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_map([], template)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Also if it is removed.
    pub async fn template(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM template WHERE id = ?";
            Ok(transaction.prepare_cached(sql)?.query_row([id], template).optional()?)
        })
        .await
    }

    /// Changes what its owner says of it. The URL, the format's meaning for files and the checksum stay.
    pub async fn update_template(&self, id: TemplateId, facts: TemplateFacts) -> Result<Option<Template>, StoreError> {
        self.write(move |transaction| {
            let sql = "UPDATE template SET name = :name, display_text = :display_text, os_type = :os_type,
                           template_tag = :tag, details = :details, is_bootable = :bootable, requires_hvm = :hvm,
                           password_enabled = :password, ssh_key_enabled = :ssh_key, dynamically_scalable = :scalable,
                           arch = :arch
                       WHERE id = :id AND removed IS NULL RETURNING *";
            let params = named_params! {
                ":id": id,
                ":name": facts.name,
                ":display_text": facts.display_text,
                ":os_type": facts.os_type,
                ":tag": facts.template_tag,
                ":details": serde_json::json!(facts.details).to_string(),
                ":bootable": facts.is_bootable,
                ":hvm": facts.requires_hvm,
                ":password": facts.password_enabled,
                ":ssh_key": facts.ssh_key_enabled,
                ":scalable": facts.dynamically_scalable,
                ":arch": facts.arch,
            };
            Ok(transaction.query_row(sql, params, template).optional()?)
        })
        .await
    }

    /// Marks a template as removed and forgets its rows on stores.
    pub async fn remove_template(&self, id: TemplateId) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute("DELETE FROM template_store WHERE template_id = ?", [id])?;
            transaction.execute("UPDATE template SET removed = ? WHERE id = ?", params![now(), id])?;
            Ok(())
        })
        .await
    }

    /// One row; `None` when its template was removed.
    pub async fn template_store(&self, id: TemplateStoreId) -> Result<Option<TemplateStore>, StoreError> {
        self.read(move |transaction| {
            let sql = "SELECT * FROM template_store WHERE id = ?";
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(statement.query_row([id], template_store).optional()?)
        })
        .await
    }

    /// Moves a row as [`DownloadState::on`] says, with all that is known now. `None` when its template was removed.
    ///
    /// # Errors
    /// There is no such transition.
    pub async fn download_event(
        &self,
        id: TemplateStoreId,
        event: DownloadEvent,
        progress: Progress,
        attempt: u32,
        next_attempt: Option<OffsetDateTime>,
    ) -> Result<Option<TemplateStore>, StoreError> {
        self.write(move |transaction| {
            let sql = "SELECT state FROM template_store WHERE id = ?";
            let state = transaction
                .prepare_cached(sql)?
                .query_row([id], |row| row.get::<_, Parsed<DownloadState>>(0));
            let Some(Parsed(state)) = state.optional()? else {
                return Ok(None);
            };
            let sql = "UPDATE template_store SET state = :state, percent = :percent, error = :error, job_id = :job,
                           install_path = :install_path, size = :size, physical_size = :physical_size,
                           checksum = :checksum, bytes = :bytes, rate = :rate, attempt = :attempt,
                           next_attempt = :next_attempt, updated = :now
                       WHERE id = :id RETURNING *";
            let params = named_params! {
                ":id": id,
                ":state": state.on(event)?.as_str(),
                ":percent": progress.percent,
                ":error": progress.error,
                ":job": progress.job,
                ":install_path": progress.install_path,
                ":size": progress.size,
                ":physical_size": progress.physical_size,
                ":checksum": progress.checksum,
                ":bytes": progress.bytes,
                ":rate": progress.rate,
                ":attempt": attempt,
                ":next_attempt": next_attempt.map(Milliseconds),
                ":now": now(),
            };
            let mut statement = transaction.prepare_cached(sql)?;
            Ok(Some(statement.query_row(params, template_store)?))
        })
        .await
    }
}

fn template(row: &Row<'_>) -> rusqlite::Result<Template> {
    let details: String = row.get("details")?;
    Ok(Template {
        id: row.get("id")?,
        uuid: row.get::<_, Parsed<_>>("uuid")?.0,
        unique_name: row.get("unique_name")?,
        facts: TemplateFacts {
            kind: row.get::<_, Parsed<_>>("kind")?.0,
            name: row.get("name")?,
            display_text: row.get("display_text")?,
            format: row.get("format")?,
            hypervisor: row.get("hypervisor")?,
            url: row.get("url")?,
            checksum: row.get("checksum")?,
            arch: row.get("arch")?,
            bits: row.get("bits")?,
            os_type: row.get("os_type")?,
            template_tag: row.get("template_tag")?,
            details: serde_json::from_str(&details).unwrap_or_default(),
            account: row.get("account_id")?,
            zone: row.get("zone_id")?,
            is_public: row.get("is_public")?,
            is_featured: row.get("is_featured")?,
            is_extractable: row.get("is_extractable")?,
            is_bootable: row.get("is_bootable")?,
            requires_hvm: row.get("requires_hvm")?,
            password_enabled: row.get("password_enabled")?,
            ssh_key_enabled: row.get("ssh_key_enabled")?,
            dynamically_scalable: row.get("dynamically_scalable")?,
        },
        created: row.get::<_, Seconds>("created")?.0,
        removed: row.get::<_, Option<Seconds>>("removed")?.map(|seconds| seconds.0),
    })
}

fn template_store(row: &Row<'_>) -> rusqlite::Result<TemplateStore> {
    Ok(TemplateStore {
        id: row.get("id")?,
        template: row.get("template_id")?,
        store: row.get("store_id")?,
        state: row.get::<_, Parsed<_>>("state")?.0,
        progress: Progress {
            percent: row.get("percent")?,
            error: row.get("error")?,
            job: row.get("job_id")?,
            install_path: row.get("install_path")?,
            size: row.get("size")?,
            physical_size: row.get("physical_size")?,
            checksum: row.get("checksum")?,
            bytes: row.get("bytes")?,
            rate: row.get("rate")?,
        },
        attempt: row.get("attempt")?,
        next_attempt: row.get::<_, Option<Milliseconds>>("next_attempt")?.map(|time| time.0),
        updated: row.get::<_, Seconds>("updated")?.0,
    })
}

impl TemplateKind {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Template => "TEMPLATE",
            Self::Iso => "ISO",
        }
    }
}

impl fmt::Display for TemplateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TemplateKind {
    type Err = BadTemplateKind;

    fn from_str(text: &str) -> Result<Self, BadTemplateKind> {
        let found = [Self::Template, Self::Iso]
            .into_iter()
            .find(|kind| kind.as_str() == text);
        found.ok_or_else(|| BadTemplateKind(text.to_owned()))
    }
}
