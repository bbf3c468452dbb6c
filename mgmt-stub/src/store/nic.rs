//! NICs, and who has which address (management.md §4).
//!
//! A row is a NIC of an instance; its address is taken as long as it is there. That no two have the same is for an index
//! of the database to see to, and an address is chosen and taken in one transaction.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use protocol::boot::MacAddr;
use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use time::OffsetDateTime;

use super::id::{InstanceId, ZoneId};
use super::row::{Parsed, moment, now};
use super::{Store, StoreError};
use crate::driver::Traffic;
use crate::instance_state::InstanceState;
use crate::random;

/// A NIC of an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    pub instance: InstanceId,
    /// 0 is eth0.
    pub device: u32,
    pub traffic: Traffic,
    /// A control NIC without an address has none.
    pub mac: Option<MacAddr>,
    /// With the length of its network's prefix.
    pub address: Option<Ipv4Net>,
    /// Of its network.
    pub gateway: Option<Ipv4Addr>,
    /// Whether it has the default route.
    pub is_default: bool,
    /// Since when it has this address.
    pub taken: Option<OffsetDateTime>,
}

/// A NIC that an instance shall have, with an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedNic {
    pub traffic: Traffic,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub is_default: bool,
    /// First and last address of each range; those of the first group are taken before those of the second.
    pub ranges: Vec<Vec<(Ipv4Addr, Ipv4Addr)>>,
}

impl Store {
    /// Gives an instance that is being started the NICs that it shall have, in the order of their devices. What it has
    /// and still fits it keeps; the rest is chosen at random. All or nothing.
    ///
    /// # Errors
    /// It is not being started any more, or a network has no free address.
    pub async fn reserve_nics(&self, instance: InstanceId, wanted: Vec<WantedNic>) -> Result<Vec<Nic>, StoreError> {
        self.write(move |transaction| {
            let sql = "SELECT zone_id FROM instance WHERE id = ? AND state = ? AND removed IS NULL";
            let params = params![instance, InstanceState::Starting.as_str()];
            let zone = transaction
                .query_row(sql, params, |row| row.get::<_, ZoneId>(0))
                .optional()?;
            let zone = zone.ok_or(StoreError::NotStarting(instance))?;
            let has = nics_of(transaction, instance)?;
            let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
            let sql = "DELETE FROM nic WHERE instance_id = ? AND device >= ?";
            transaction.execute(sql, params![instance, count])?;
            for (device, nic) in (0..).zip(&wanted) {
                let had = has
                    .iter()
                    .find(|had| had.device == device && had.traffic == nic.traffic);
                reserve(transaction, zone, instance, device, nic, had)?;
            }
            let nics = nics_of(transaction, instance)?;
            if let Some(public) = nics.iter().find(|nic| nic.traffic == Traffic::Public) {
                let address = public.address.map(|net| net.addr().to_string());
                transaction.execute(
                    "UPDATE instance SET public_ip = ? WHERE id = ?",
                    params![address, instance],
                )?;
            }
            Ok(nics)
        })
        .await
    }

    /// Those of an instance, by device.
    pub async fn nics(&self, instance: InstanceId) -> Result<Vec<Nic>, StoreError> {
        self.read(move |transaction| nics_of(transaction, instance)).await
    }

    /// All there are, by instance and device.
    pub async fn all_nics(&self) -> Result<Vec<Nic>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM nic ORDER BY instance_id, device")?;
            Ok(statement.query_map([], nic)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Gives back what an instance that is Stopped does not keep; answers how many addresses that were.
    pub async fn release_addresses(
        &self,
        instance: InstanceId,
        traffic: &'static [Traffic],
    ) -> Result<usize, StoreError> {
        self.write(move |transaction| release(transaction, Some(instance), traffic))
            .await
    }

    /// Gives back what instances have that are Stopped, as [`Store::release_addresses`] does: a server that was killed
    /// had no time for it.
    pub async fn release_left_addresses(&self, traffic: &'static [Traffic]) -> Result<usize, StoreError> {
        self.write(move |transaction| release(transaction, None, traffic)).await
    }
}

/// With its NICs go the addresses of an instance.
pub(super) fn remove_nics(transaction: &Transaction<'_>, instance: InstanceId) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("DELETE FROM nic WHERE instance_id = ?")?;
    statement.execute([instance]).map(drop)
}

fn nics_of(transaction: &Transaction<'_>, instance: InstanceId) -> Result<Vec<Nic>, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT * FROM nic WHERE instance_id = ? ORDER BY device")?;
    Ok(statement.query_map([instance], nic)?.collect::<Result<_, _>>()?)
}

fn release(
    transaction: &Transaction<'_>,
    instance: Option<InstanceId>,
    traffic: &[Traffic],
) -> Result<usize, StoreError> {
    let sql = "UPDATE nic SET address = NULL, taken = NULL,
                   mac = CASE WHEN traffic = 'Control' THEN NULL ELSE mac END
               WHERE traffic = :traffic AND address IS NOT NULL AND (:instance IS NULL OR instance_id = :instance)
                   AND instance_id IN (SELECT id FROM instance WHERE state = :stopped)";
    let mut statement = transaction.prepare_cached(sql)?;
    let mut count = 0;
    for traffic in traffic {
        let stopped = InstanceState::Stopped.as_str();
        count += statement
            .execute(named_params! { ":traffic": traffic.as_str(), ":instance": instance, ":stopped": stopped })?;
    }
    Ok(count)
}

fn reserve(
    transaction: &Transaction<'_>,
    zone: ZoneId,
    instance: InstanceId,
    device: u32,
    wanted: &WantedNic,
    had: Option<&Nic>,
) -> Result<(), StoreError> {
    let fits = |address: &Ipv4Addr| {
        let mut ranges = wanted.ranges.iter().flatten();
        ranges.any(|(first, last)| (first..=last).contains(&address))
    };
    let kept = had.and_then(|had| had.address).map(|net| net.addr()).filter(fits);
    let address = match kept {
        Some(address) => address,
        None => free_address(transaction, zone, wanted)?,
    };
    let known = had
        .and_then(|had| had.mac)
        .filter(|_| wanted.traffic != Traffic::Control);
    let mac = match (wanted.traffic, known) {
        (_, Some(mac)) => mac.to_string(),
        (Traffic::Control, None) => control_mac(address),
        (traffic, None) => free_mac(transaction, zone, traffic)?,
    };
    let sql =
        "INSERT INTO nic (instance_id, zone_id, device, traffic, mac, address, prefix, gateway, is_default, taken)
               VALUES (:instance, :zone, :device, :traffic, :mac, :address, :prefix, :gateway, :default, :now)
               ON CONFLICT (instance_id, device) DO UPDATE SET
                   traffic = :traffic, mac = :mac, prefix = :prefix, gateway = :gateway, is_default = :default,
                   taken = CASE WHEN address IS :address THEN taken ELSE :now END, address = :address";
    let params = named_params! {
        ":instance": instance,
        ":zone": zone,
        ":device": device,
        ":traffic": wanted.traffic.as_str(),
        ":mac": mac,
        ":address": address.to_string(),
        ":prefix": wanted.subnet.prefix_len(),
        ":gateway": wanted.gateway.to_string(),
        ":default": wanted.is_default,
        ":now": now(),
    };
    transaction.prepare_cached(sql)?.execute(params)?;
    Ok(())
}

fn free_address(transaction: &Transaction<'_>, zone: ZoneId, wanted: &WantedNic) -> Result<Ipv4Addr, StoreError> {
    let sql = "SELECT address FROM nic WHERE zone_id = ? AND traffic = ? AND address IS NOT NULL";
    let mut statement = transaction.prepare_cached(sql)?;
    let taken = statement.query_map(params![zone, wanted.traffic.as_str()], |row| {
        row.get::<_, Parsed<Ipv4Addr>>(0).map(|address| address.0)
    })?;
    let taken: HashSet<Ipv4Addr> = taken.collect::<Result<_, _>>()?;
    let is_free = |address: &Ipv4Addr| {
        let net = &wanted.subnet;
        let is_host = net.contains(address) && *address != net.network() && *address != net.broadcast();
        is_host && *address != wanted.gateway && !taken.contains(address)
    };
    let mut groups = wanted.ranges.iter();
    groups
        .find_map(|ranges| pick(ranges, random::number(), is_free))
        .ok_or(StoreError::NoFreeAddress {
            traffic: wanted.traffic,
            subnet: wanted.subnet,
        })
}

/// The first free address from a random one on, around the ranges once.
fn pick(ranges: &[(Ipv4Addr, Ipv4Addr)], random: u32, is_free: impl Fn(&Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let sizes = ranges.iter().map(|(first, last)| {
        let (first, last) = (u32::from(*first), u32::from(*last));
        (first, u64::from(last).saturating_add(1).saturating_sub(first.into()))
    });
    let sizes: Vec<(u32, u64)> = sizes.collect();
    let total: u64 = sizes.iter().map(|(_, size)| size).sum();
    let at = |mut index: u64| {
        for (first, size) in &sizes {
            if index < *size {
                return first.checked_add(u32::try_from(index).ok()?).map(Ipv4Addr::from);
            }
            index -= size;
        }
        None
    };
    let start = u64::from(random).checked_rem(total)?;
    (start..total).chain(0..start).filter_map(at).find(is_free)
}

/// 0e:00, then the address (management.md §4).
fn control_mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0e:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Locally administered: 1e, or 02 for guests, then the zone, then at random.
fn free_mac(transaction: &Transaction<'_>, zone: ZoneId, traffic: Traffic) -> Result<String, StoreError> {
    let prefix = if traffic == Traffic::Guest { 0x02 } else { 0x1e };
    let [.., zone] = zone.0.to_be_bytes();
    let mut is_taken = transaction.prepare_cached("SELECT EXISTS (SELECT 1 FROM nic WHERE mac = ?)")?;
    loop {
        let [a, b, c, d] = random::number().to_be_bytes();
        let mac = format!("{prefix:02x}:{zone:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        if !is_taken.query_row([&mac], |row| row.get::<_, bool>(0))? {
            return Ok(mac);
        }
    }
}

fn nic(row: &Row<'_>) -> rusqlite::Result<Nic> {
    let address = row.get::<_, Option<Parsed<Ipv4Addr>>>("address")?;
    let prefix = row.get::<_, Option<u8>>("prefix")?;
    Ok(Nic {
        instance: row.get("instance_id")?,
        device: row.get("device")?,
        traffic: row.get::<_, Parsed<_>>("traffic")?.0,
        mac: row.get::<_, Option<Parsed<_>>>("mac")?.map(|mac| mac.0),
        address: address
            .zip(prefix)
            .and_then(|(address, prefix)| Ipv4Net::new(address.0, prefix).ok()),
        gateway: row.get::<_, Option<Parsed<_>>>("gateway")?.map(|gateway| gateway.0),
        is_default: row.get("is_default")?,
        taken: moment(row, "taken")?,
    })
}

#[cfg(test)]
mod tests;
