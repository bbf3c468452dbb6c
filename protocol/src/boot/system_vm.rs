//! The typed boot arguments of each type of system VM.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{
    BadBootArgs, BadValue, BootArgs, ConsoleProxy, LoadBalancer, Machine, Reader, Router, SecondaryStorage, VpcRouter,
};

/// A system VM as its boot arguments describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemVm {
    /// What every VM has: name, network, keys.
    pub machine: Machine,
    /// What this VM is for.
    pub role: Role,
    /// Keys that say nothing to this version or to this role.
    pub unknown: BootArgs,
}

/// What a system VM is for; `type=` on the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Templates, volumes and snapshots: `secstorage`.
    SecondaryStorage(SecondaryStorage),
    /// Consoles in the browser: `consoleproxy`.
    ConsoleProxy(ConsoleProxy),
    /// Router with a public side: `router`.
    Router(Router),
    /// Router without one: `dhcpsrvr`.
    DhcpServer(Router),
    /// `vpcrouter`.
    VpcRouter(VpcRouter),
    /// `ilbvm`.
    InternalLb(LoadBalancer),
    /// `elbvm`.
    ElasticLb(LoadBalancer),
    /// Node of a CloudStack Kubernetes cluster: `cksnode`.
    CksNode,
    /// Shared file system: `sharedfsvm`.
    SharedFs,
}

impl SystemVm {
    /// Reads every key this type knows; all problems are reported together.
    pub fn parse(args: &BootArgs) -> Result<Self, BadBootArgs> {
        let mut read = Reader::new(args);
        let vm = Self::read(&mut read);
        read.finish(|| vm)
    }

    fn read(read: &mut Reader<'_>) -> Option<Self> {
        let vm_type = read.required("type", &VmType::wanted());
        let machine = Machine::read(read);
        let role = match vm_type? {
            VmType::SecondaryStorage => Role::SecondaryStorage(SecondaryStorage::read(read)?),
            VmType::ConsoleProxy => Role::ConsoleProxy(ConsoleProxy::read(read)?),
            VmType::Router => Role::Router(Router::read(read, &machine)),
            VmType::DhcpServer => Role::DhcpServer(Router::read(read, &machine)),
            VmType::VpcRouter => Role::VpcRouter(VpcRouter::read(read)),
            VmType::InternalLb => Role::InternalLb(LoadBalancer::read(read)),
            VmType::ElasticLb => Role::ElasticLb(LoadBalancer::read(read)),
            VmType::CksNode => Role::CksNode,
            VmType::SharedFs => Role::SharedFs,
        };
        Some(Self {
            machine,
            role,
            unknown: read.unknown(),
        })
    }

    /// Every key that [`SystemVm::parse`] reads for a type; `eth0ip` and the like stand for all NICs.
    pub fn known_keys(vm_type: VmType) -> BTreeSet<String> {
        let line = format!("type={vm_type} eth0ip=0.0.0.0");
        let args = BootArgs::parse(line).expect("two good words");
        let mut read = Reader::new(&args);
        Self::read(&mut read); // what is missing does not matter here
        read.into_asked()
    }

    /// `type=` of this VM.
    pub const fn vm_type(&self) -> VmType {
        match self.role {
            Role::SecondaryStorage(_) => VmType::SecondaryStorage,
            Role::ConsoleProxy(_) => VmType::ConsoleProxy,
            Role::Router(_) => VmType::Router,
            Role::DhcpServer(_) => VmType::DhcpServer,
            Role::VpcRouter(_) => VmType::VpcRouter,
            Role::InternalLb(_) => VmType::InternalLb,
            Role::ElasticLb(_) => VmType::ElasticLb,
            Role::CksNode => VmType::CksNode,
            Role::SharedFs => VmType::SharedFs,
        }
    }
}

/// The values of `type=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "Role has the same variants and explains them")]
pub enum VmType {
    SecondaryStorage,
    ConsoleProxy,
    Router,
    DhcpServer,
    VpcRouter,
    InternalLb,
    ElasticLb,
    CksNode,
    SharedFs,
}

impl VmType {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SecondaryStorage,
        Self::ConsoleProxy,
        Self::Router,
        Self::DhcpServer,
        Self::VpcRouter,
        Self::InternalLb,
        Self::ElasticLb,
        Self::CksNode,
        Self::SharedFs,
    ];

    /// CloudStack's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SecondaryStorage => "secstorage",
            Self::ConsoleProxy => "consoleproxy",
            Self::Router => "router",
            Self::DhcpServer => "dhcpsrvr",
            Self::VpcRouter => "vpcrouter",
            Self::InternalLb => "ilbvm",
            Self::ElasticLb => "elbvm",
            Self::CksNode => "cksnode",
            Self::SharedFs => "sharedfsvm",
        }
    }

    fn wanted() -> String {
        format!("one of {}", Self::ALL.map(Self::name).join(", "))
    }
}

impl FromStr for VmType {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let found = Self::ALL.into_iter().find(|vm_type| vm_type.name() == text);
        found.ok_or_else(|| BadValue::new(text, "a type of system VM; write it like consoleproxy"))
    }
}

impl serde::Serialize for VmType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for VmType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<SystemVm, String> {
        SystemVm::parse(&BootArgs::parse(line).unwrap()).map_err(|error| error.to_string())
    }

    fn console_proxy(more: &str) -> ConsoleProxy {
        match parse(&format!("type=consoleproxy host=ms1 guid=Proxy.2 {more}"))
            .unwrap()
            .role
        {
            Role::ConsoleProxy(proxy) => proxy,
            other => panic!("not a console proxy: {other:?}"),
        }
    }

    #[test]
    fn a_missing_or_unknown_type_lists_the_known_ones() {
        let known = "secstorage, consoleproxy, router, dhcpsrvr, vpcrouter, ilbvm, elbvm, cksnode, sharedfsvm";
        assert_eq!(
            parse("name=r-4-VM").unwrap_err(),
            format!("1 boot argument(s) need fixing\n  type: missing, expected one of {known}")
        );
        assert_eq!(
            parse("type=routers dns1=x").unwrap_err(),
            format!(
                "2 boot argument(s) need fixing\n  type=\"routers\": expected one of {known}\n  \
                 dns1=\"x\": expected the IPv4 address of a DNS server"
            )
        );
    }

    #[test]
    fn every_type_keeps_its_name() {
        for vm_type in VmType::ALL {
            let line = format!("type={vm_type} host=ms1 guid=x");
            assert_eq!(parse(&line).unwrap().vm_type(), vm_type);
        }
    }

    #[test]
    fn only_the_literal_premium_reports_port_443_but_both_spellings_encrypt() {
        let seen = |more| {
            let proxy = console_proxy(more);
            (proxy.is_encrypted, proxy.reported_port.get())
        };
        assert_eq!(seen(""), (false, 80));
        assert_eq!(seen("premium=true"), (true, 80));
        assert_eq!(seen("premium=premium"), (true, 443));
        assert_eq!(seen("premium=true consoleproxy.httpListenPort=8081"), (true, 8081));
    }

    #[test]
    fn a_placeholder_is_no_zone_and_no_host() {
        let agent = console_proxy("zone=@ZONE@ pod=7").agent;
        assert_eq!((agent.zone.as_str(), agent.pod.as_str()), ("default", "7"));
        assert_eq!(
            parse("type=consoleproxy guid=Proxy.2 host=@HOST@").unwrap_err(),
            "1 boot argument(s) need fixing\n  \
             host=\"@HOST@\": expected the management servers, such as 192.0.2.10,192.0.2.11"
        );
    }

    #[test]
    fn a_bare_metal_router_needs_all_four_keys() {
        assert_eq!(
            parse("type=router baremetalnotificationapikey=hush port=hush").unwrap_err(),
            "3 boot argument(s) need fixing\n  \
             baremetalnotificationsecuritykey: missing, expected an API key\n  \
             host: missing, expected the management servers, such as 192.0.2.10,192.0.2.11\n  \
             port=\"hush\": expected a port number"
        );
    }

    #[test]
    fn keys_of_another_type_are_unknown_but_kept() {
        let vm = parse("type=cksnode vncport=8080 x=1 router_password=hush").unwrap();
        assert_eq!(vm.unknown.to_line(), "vncport=8080 x=1 router_password=hush");
        assert!(!format!("{vm:?}").contains("hush"));
    }

    proptest! {
        #[test]
        fn any_values_of_known_keys_are_typed_or_refused_without_a_panic(
            values in prop::collection::vec("[0-9a-z.:/@,|*=~^ä-]{0,20}", 0..90), seed: usize,
        ) {
            let vm_type = VmType::ALL[seed % VmType::ALL.len()];
            let keys = SystemVm::known_keys(vm_type);
            let words = keys.iter().zip(&values).filter(|(key, _)| *key != "type");
            let words: Vec<String> = words.map(|(key, value)| format!("{key}={value}")).collect();
            let _ = parse(&format!("type={vm_type} {}", words.join(" ")));
        }
    }
}
