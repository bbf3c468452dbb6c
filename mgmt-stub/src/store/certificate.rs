//! Certificates that our CA issued, and which of them are revoked.

use rusqlite::types::Type;
use rusqlite::{Error, Row, named_params, params};
use time::OffsetDateTime;

use super::id::HostId;
use super::row::{Parsed, Seconds, now};
use super::{Store, StoreError};
use crate::ca::{Serial, Signed};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateRow {
    pub serial: Serial,
    /// For whom, where that is known.
    pub host: Option<HostId>,
    pub subject: String,
    /// Subject alternative names: host names and addresses.
    pub sans: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub issued: OffsetDateTime,
    pub revoked: Option<OffsetDateTime>,
}

impl Store {
    pub async fn record_certificate(&self, signed: &Signed, host: Option<HostId>) -> Result<(), StoreError> {
        let signed = signed.clone();
        self.write(move |transaction| {
            let sql = "INSERT INTO certificate (serial, host_id, subject, sans, not_before, not_after, issued)
                       VALUES (:serial, :host, :subject, :sans, :not_before, :not_after, :issued)";
            let params = named_params! {
                ":serial": signed.serial.to_string(),
                ":host": host,
                ":subject": signed.subject,
                ":sans": serde_json::json!(signed.sans).to_string(),
                ":not_before": signed.not_before.unix_timestamp(),
                ":not_after": signed.not_after.unix_timestamp(),
                ":issued": now(),
            };
            transaction.execute(sql, params)?;
            Ok(())
        })
        .await
    }

    /// The newest first.
    pub async fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare("SELECT * FROM certificate ORDER BY issued DESC, serial")?;
            Ok(statement.query_map([], certificate)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Whether it is revoked now. A certificate that we do not know is not.
    pub async fn is_revoked(&self, serial: &Serial) -> Result<bool, StoreError> {
        let serial = serial.to_string();
        self.read(move |transaction| {
            let sql = "SELECT EXISTS (SELECT 1 FROM certificate WHERE serial = ? AND revoked IS NOT NULL)";
            Ok(transaction.query_row(sql, [serial], |row| row.get(0))?)
        })
        .await
    }

    /// Revokes it from now on; the first time counts. False when we did not issue such a certificate.
    pub async fn revoke(&self, serial: &Serial) -> Result<bool, StoreError> {
        let serial = serial.to_string();
        self.write(move |transaction| {
            let sql = "UPDATE certificate SET revoked = coalesce(revoked, ?) WHERE serial = ?";
            Ok(transaction.execute(sql, params![now(), serial])? == 1)
        })
        .await
    }
}

fn certificate(row: &Row<'_>) -> rusqlite::Result<CertificateRow> {
    let sans: String = row.get("sans")?;
    Ok(CertificateRow {
        serial: row.get::<_, Parsed<_>>("serial")?.0,
        host: row.get("host_id")?,
        subject: row.get("subject")?,
        sans: serde_json::from_str(&sans)
            .map_err(|error| Error::FromSqlConversionFailure(0, Type::Text, error.into()))?,
        not_before: row.get::<_, Seconds>("not_before")?.0,
        not_after: row.get::<_, Seconds>("not_after")?.0,
        issued: row.get::<_, Seconds>("issued")?.0,
        revoked: row.get::<_, Option<Seconds>>("revoked")?.map(|seconds| seconds.0),
    })
}
