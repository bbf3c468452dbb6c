//! A place for system VMs, as a hypervisor host has it: a bridge for each network, with the addresses of the examples of
//! appliance.md §2.4, and the host's ways in.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::vm::{Net, Nic, Ssh};

/// Of one look whether a port is open.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);

/// Networks and the host's addresses in them. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where all of it is.
    pub net: Net,
}

impl Site {
    /// The networks of a zone: control, management (with the management server's addresses and the resolver's), public,
    /// storage (with the NFS server's address) and guest.
    ///
    /// # Errors
    /// We are not root.
    pub async fn new() -> anyhow::Result<Self> {
        let net = Net::new().await?;
        net.bridge("control", "169.254.0.1/16").await?;
        net.bridge("management", "192.0.2.1/24").await?;
        net.bridge("public", "203.0.113.1/24").await?;
        net.bridge("storage", "198.51.100.1/24").await?;
        net.bridge("guest", "10.1.1.2/24").await?;
        net.ip("address add 192.0.2.10/24 dev management\n\
             address add 192.0.2.11/24 dev management\n\
             address add 192.0.2.53/24 dev management\n\
             address add 198.51.100.5/24 dev storage")
            .await?;
        Ok(Self { net })
    }

    /// Whether TCP connections to a port are taken.
    ///
    /// # Errors
    /// The address is none.
    pub fn is_open(&self, address: &str, port: u16) -> anyhow::Result<bool> {
        let address = SocketAddr::new(
            address.parse().with_context(|| format!("{address} is no address"))?,
            port,
        );
        let connected = self
            .net
            .inside(|| TcpStream::connect_timeout(&address, CONNECT_LIMIT))?;
        Ok(connected.is_ok())
    }

    /// Waits until TCP connections to a port are taken; how long that took.
    ///
    /// # Errors
    /// They are not within `limit`.
    pub async fn opens(&self, address: &str, port: u16, limit: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            // A thread of its own: the caller's may have other VMs to look after.
            let (site, to) = (self.clone(), address.to_owned());
            if tokio::task::spawn_blocking(move || site.is_open(&to, port)).await?? {
                return Ok(started.elapsed());
            }
            ensure!(
                started.elapsed() < limit,
                "{address} port {port} does not open within {limit:?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A system VM of appliance.md §2.4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Example {
    /// (1), with a storage network.
    Ssvm,
    /// (2), with user data.
    ConsoleProxy,
    /// (3), of an isolated network.
    Router,
    /// (4), redundant; its other NICs are plugged in later.
    VpcRouter,
    /// (5), the DHCP server of a basic zone.
    DhcpServer,
    /// (6), an isolated router on VMware, whose control network is the management network.
    VmwareRouter,
    /// (7), an internal load balancer.
    LoadBalancer,
}

impl Example {
    /// The boot arguments, with the key of a host.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn line(self, host: &Ssh) -> anyhow::Result<String> {
        let key = BASE64_STANDARD.encode(host.public_key()?);
        Ok(self.text().replace("${KEY}", &key))
    }

    /// As the spec has them.
    fn text(self) -> &'static str {
        match self {
            Self::Ssvm => {
                " template=domP type=secstorage host=192.0.2.10 port=8250 name=s-1-VM zone=1 pod=1 guid=s-1-VM workers=5 \
                 authorized_key=${KEY} resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource \
                 instance=SecStorage sslcopy=false role=templateProcessor mtu=1500 eth2ip=203.0.113.21 \
                 eth2mask=255.255.255.0 gateway=203.0.113.1 public.network.device=eth2 eth0ip=169.254.14.87 \
                 eth0mask=255.255.0.0 eth1ip=192.0.2.21 eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 \
                 private.network.device=eth1 eth3ip=198.51.100.30 eth3mask=255.255.255.0 storageip=198.51.100.30 \
                 storagenetmask=255.255.255.0 storagegateway=198.51.100.1 internaldns1=192.0.2.53 dns1=198.51.100.53 \
                 dns2=198.51.100.54 nfsVersion=4.1 keystore_password=WmszdlE4bllwMkxyVDZ4Vw== useHttpsToUpload=true \
                 secondaryStorageServerAddress=198.51.100.5"
            }
            Self::ConsoleProxy => {
                " template=domP type=consoleproxy host=192.0.2.10,192.0.2.11 port=8250 name=v-2-VM zone=1 pod=1 \
                 guid=Proxy.2 proxy_vm=2 disable_rp_filter=true authorized_key=${KEY} \
                 ntpserverlist=192.0.2.123,192.0.2.124 eth2ip=203.0.113.22 eth2mask=255.255.255.0 gateway=203.0.113.1 \
                 eth0ip=169.254.201.3 eth0mask=255.255.0.0 eth1ip=192.0.2.22 eth1mask=255.255.255.0 \
                 mgmtcidr=192.0.2.0/24,198.51.100.0/24 localgw=192.0.2.1 internaldns1=192.0.2.53 dns1=198.51.100.53 \
                 vncport=8080 keystore_password=WmszdlE4bllwMkxyVDZ4Vw== \
                 userdata=H4sIAAAAAAACA1NOzskvTdFNzs9Ly0znKirNS85NseJSUNBViC7JL03O0FHQL8rPL9EvLU4tSkksSdQtSsyL5QIAJwn6/DYAAAA="
            }
            Self::Router => {
                " template=domP name=r-4-VM authorized_key=${KEY} eth2ip=203.0.113.31 eth2mask=255.255.255.0 \
                 gateway=203.0.113.1 publicMtu=1500 eth0ip=10.1.1.1 eth0mask=255.255.255.0 privateMtu=1500 \
                 domain=cs2cloud.internal cidrsize=24 dhcprange=10.1.1.1 eth1ip=169.254.3.7 eth1mask=255.255.0.0 \
                 type=router  dns1=198.51.100.53 dns2=198.51.100.54 logrotatefrequency=*:00:00"
            }
            Self::VpcRouter => {
                " vpccidr=10.10.0.0/16 domain=cs3.internal publicMtu=1500 dns1=198.51.100.53 template=domP name=r-12-VM \
                 authorized_key=${KEY} eth0ip=169.254.88.19 eth0mask=255.255.0.0 redundant_router=1 advert_int=1 \
                 router_id=5 router_password=5311266293259727936825552108555410444570756323079127756438068074256466771321914\
                 454357819571964038187804453171942728887977074917504206308339081328142398284 redundant_state=PRIMARY \
                 has_public_network=true vpc_firewall_enabled=false type=vpcrouter disable_rp_filter=true \
                 logrotatefrequency=*:00:00 source_nat_ip=203.0.113.77"
            }
            Self::DhcpServer => {
                " template=domP name=r-6-VM authorized_key=${KEY} eth0ip=203.0.113.40 eth0mask=255.255.255.0 \
                 gateway=203.0.113.1 privateMtu=null domain=cs1.internal cidrsize=24 dhcprange=203.0.113.1 \
                 eth1ip=169.254.9.9 eth1mask=255.255.0.0 type=dhcpsrvr  dns1=198.51.100.53 logrotatefrequency=*:00:00"
            }
            Self::VmwareRouter => {
                " template=domP name=r-8-VM authorized_key=${KEY} eth2ip=203.0.113.33 eth2mask=255.255.255.0 \
                 gateway=203.0.113.1 publicMtu=1500 eth0ip=10.1.1.1 eth0mask=255.255.255.0 privateMtu=1500 \
                 domain=cs2cloud.internal cidrsize=24 dhcprange=10.1.1.1 eth1ip=192.0.2.77 eth1mask=255.255.255.0 \
                 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 type=router  dns1=198.51.100.53 logrotatefrequency=*:00:00 \
                 nic_macs=02:00:5e:10:00:0a|02:00:5e:10:00:0b|1e:00:5e:10:00:0c"
            }
            Self::LoadBalancer => {
                " template=domP name=b-9-VM eth0ip=10.10.1.250 eth0mask=255.255.255.0 gateway=10.10.1.1 dns1=10.10.1.1 \
                 authorized_key=${KEY} eth1ip=169.254.77.1 eth1mask=255.255.0.0 authorized_key=${KEY} \
                 domain=cs3.internal type=ilbvm"
            }
        }
    }

    /// Its address on the control network.
    pub fn control(self) -> &'static str {
        match self {
            Self::Ssvm => "169.254.14.87",
            Self::ConsoleProxy => "169.254.201.3",
            Self::Router => "169.254.3.7",
            Self::VpcRouter => "169.254.88.19",
            Self::DhcpServer => "169.254.9.9",
            Self::VmwareRouter => "192.0.2.77",
            Self::LoadBalancer => "169.254.77.1",
        }
    }

    /// Its NICs as they are when it starts, eth0 first; those of the router on VMware the other way round, so that only its
    /// `nic_macs` tell which is which.
    pub fn nics(self) -> Vec<Nic> {
        let bridges: &[&str] = match self {
            Self::Ssvm => &["control", "management", "public", "storage"],
            Self::ConsoleProxy => &["control", "management", "public"],
            Self::Router => &["guest", "control", "public"],
            Self::VpcRouter => &["control"],
            Self::DhcpServer => &["public", "control"],
            Self::VmwareRouter => &["public", "management", "guest"],
            Self::LoadBalancer => &["guest", "control"],
        };
        (0..)
            .zip(bridges)
            .map(|(device, bridge)| Nic::on(bridge, &self.mac(device)))
            .collect()
    }

    /// The MAC address of a device, or of the NIC in this place. The control NIC's is made of its IPv4 address, as CloudStack does (§2.3).
    pub fn mac(self, device: u8) -> String {
        if self == Self::VmwareRouter {
            let macs = ["1e:00:5e:10:00:0c", "02:00:5e:10:00:0b", "02:00:5e:10:00:0a"];
            return macs[usize::from(device)].to_owned();
        }
        let has_control_first = matches!(self, Self::Ssvm | Self::ConsoleProxy | Self::VpcRouter);
        if device == u8::from(!has_control_first) {
            let hex = self.control().split('.').filter_map(|part| part.parse::<u8>().ok());
            let hex: Vec<_> = hex.map(|part| format!("{part:02x}")).collect();
            return format!("0e:00:{}", hex.join(":"));
        }
        format!("02:00:4c:9f:{:02x}:{device:02x}", u8::from(self == Self::Router))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_nics_have_the_addresses_that_cloudstack_gives_them() {
        assert_eq!(Example::Ssvm.mac(0), "0e:00:a9:fe:0e:57");
        assert_eq!(Example::Router.mac(1), "0e:00:a9:fe:03:07");
        assert_eq!(Example::Router.mac(0), "02:00:4c:9f:01:00");
        assert_eq!(Example::Ssvm.nics().len(), 4);
    }

    #[test]
    fn lines_have_no_gaps_but_those_of_the_examples() {
        for example in [
            Example::Ssvm,
            Example::ConsoleProxy,
            Example::VpcRouter,
            Example::LoadBalancer,
        ] {
            assert!(!example.text()[1..].contains("  "), "{example:?}");
        }
        assert_eq!(Example::Router.text().matches("  ").count(), 1);
    }
}
