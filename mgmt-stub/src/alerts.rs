//! Kinds of alerts (apache/cloudstack api/…/alert/AlertService.java; management.md §15).

use tracing::warn;

use crate::store::Store;
use crate::store::id::{PodId, ZoneId};

/// One kind. Those that do not repeat are one row for each zone and pod, with a count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlertType {
    /// On the wire.
    pub number: i64,
    /// On the wire, such as `ALERT.SERVICE.SSVM`.
    pub name: &'static str,
    /// Each time is a row of its own.
    pub repeats: bool,
}

macro_rules! alert_types {
    ($($constant:ident = $number:literal $name:literal $repeats:literal;)*) => {
        impl AlertType {
            $(#[doc = $name] pub const $constant: Self = Self { number: $number, name: $name, repeats: $repeats };)*
            /// All kinds, by number.
            pub const ALL: &[Self] = &[$(Self::$constant),*];
        }
    };
}

alert_types! {
    MEMORY = 0 "ALERT.MEMORY" false;
    CPU = 1 "ALERT.CPU" false;
    STORAGE = 2 "ALERT.STORAGE" false;
    STORAGE_ALLOCATED = 3 "ALERT.STORAGE.ALLOCATED" false;
    PUBLIC_IP = 4 "ALERT.NETWORK.PUBLICIP" false;
    PRIVATE_IP = 5 "ALERT.NETWORK.PRIVATEIP" false;
    SECONDARY_STORAGE = 6 "ALERT.STORAGE.SECONDARY" false;
    HOST = 7 "ALERT.COMPUTE.HOST" true;
    USER_VM = 8 "ALERT.USERVM" true;
    DOMAIN_ROUTER = 9 "ALERT.SERVICE.DOMAINROUTER" true;
    CONSOLE_PROXY = 10 "ALERT.SERVICE.CONSOLEPROXY" true;
    ROUTING = 11 "ALERT.NETWORK.ROUTING" false;
    STORAGE_MISC = 12 "ALERT.STORAGE.MISC" true;
    MANAGEMENT = 14 "ALERT.MANAGEMENT" true;
    VLAN = 18 "ALERT.NETWORK.VLAN" false;
    SSVM = 19 "ALERT.SERVICE.SSVM" true;
    DIRECT_PUBLIC_IP = 24 "ALERT.NETWORK.DIRECTPUBLICIP" false;
    LOCAL_STORAGE = 25 "ALERT.STORAGE.LOCAL" false;
    RESOURCE_EXCEED = 26 "ALERT.RESOURCE.EXCEED" true;
    SYNC = 27 "ALERT.TYPE.SYNC" false;
    UPLOAD_FAILED = 28 "ALERT.UPLOAD.FAILED" true;
    HA_ACTION = 30 "ALERT.HA.ACTION" true;
    CA_CERT = 31 "ALERT.CA.CERT" true;
}

impl AlertType {
    /// The kind with this number.
    pub fn find(number: i64) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.number == number)
    }
}

/// Records an alert, and logs it.
pub async fn record(
    store: &Store,
    alert_type: AlertType,
    zone: Option<ZoneId>,
    pod: Option<PodId>,
    description: impl Into<String>,
) {
    let description = description.into();
    warn!(kind = alert_type.name, description, "Alert");
    let name = alert_type.name.to_owned();
    if let Err(error) = store.add_alert(alert_type, zone, pod, name, description).await {
        warn!(error = %platform::logging::chain(&error), "Cannot record an alert");
    }
}
