//! The table. Names, defaults and units are CloudStack's; a `description` names the unit.

use std::time::Duration;

use super::Kind::{self, Flag, Fraction, List, Networks, Number, OneOf, Text, Word};
use super::Setting;

const MANY: i64 = 2_147_483_647;
const MILLISECONDS: Kind = Kind::Time {
    unit: Duration::from_millis(1),
    max: MANY,
};
const SECONDS: Kind = Kind::Time {
    unit: Duration::from_secs(1),
    max: MANY,
};
const MINUTES: Kind = Kind::Time {
    unit: Duration::from_mins(1),
    max: 525_600,
};
const HOURS: Kind = Kind::Time {
    unit: Duration::from_hours(1),
    max: 87_600,
};
const DAYS: Kind = Kind::Time {
    unit: Duration::from_hours(24),
    max: 3650,
};

macro_rules! settings {
    ($($category:literal { $($constant:ident = $name:literal $kind:expr, $default:literal, $description:literal;)* })*) => {
        $($(
            #[doc = $name]
            pub const $constant: Setting = Setting {
                name: $name,
                default: $default,
                kind: $kind,
                category: $category,
                description: $description,
            };
        )*)*
        /// All settings.
        pub const ALL: &[&Setting] = &[$($(&$constant),*),*];
    };
}

settings! {
    "Console Proxy" {
        CONSOLEPROXY_SESSION_MAX = "consoleproxy.session.max" Number(1, 100_000), "50",
            "Sessions that one console proxy takes.";
        CONSOLEPROXY_CAPACITY_STANDBY = "consoleproxy.capacity.standby" Number(0, 100_000), "10",
            "Free sessions in a zone at or below which another console proxy is started.";
        CONSOLEPROXY_CAPACITYSCAN_INTERVAL = "consoleproxy.capacityscan.interval" MILLISECONDS, "30000",
            "Time (ms) between two looks at the console proxies.";
        CONSOLEPROXY_SESSION_TIMEOUT = "consoleproxy.session.timeout" MILLISECONDS, "300000",
            "Time (ms) after which an idle console session ends.";
        CONSOLEPROXY_LAUNCH_MAX = "consoleproxy.launch.max" Number(0, 1000), "10",
            "Console proxies in a zone, at most.";
        CONSOLEPROXY_VM_AUTO_SCALE_DOWN = "consoleproxy.vm.auto.scale.down" Flag, "false",
            "Whether further console proxies are destroyed when the others have room enough without them. Our own setting.";
        CONSOLEPROXY_SCALE_DOWN_DELAY = "consoleproxy.vm.scale.down.delay" MINUTES, "30",
            "Time (minutes) that a console proxy is without sessions before it is one too many. Our own setting.";
        CONSOLEPROXY_RAM_SIZE = "consoleproxy.ram.size" Number(64, 65_536), "1024",
            "Memory (MiB) of a console proxy, from its next start on.";
        CONSOLEPROXY_DISABLE_RP_FILTER = "consoleproxy.disable.rpfilter" Flag, "true",
            "Whether a console proxy takes packets that come by another way than answers go.";
        CONSOLEPROXY_RESTART = "consoleproxy.restart" Flag, "true",
            "Start a console proxy again that has ended.";
        CONSOLEPROXY_MANAGEMENT_STATE = "consoleproxy.management.state" OneOf(&["Auto", "Manual"]), "Auto",
            "Whether console proxies are started when they are needed (Auto), or only by hand (Manual).";
        CONSOLEPROXY_SSL_ENABLED = "consoleproxy.sslEnabled" Flag, "false",
            "Consoles over https.";
        CONSOLEPROXY_URL_DOMAIN = "consoleproxy.url.domain" Text, "",
            "Domain in console URLs: *.example.org for a name made of the proxy's address, a full name for that name.";
        NOVNC_CONSOLE_SOURCEIP_CHECK_ENABLED = "novnc.console.sourceip.check.enabled" Flag, "false",
            "Whether a console opens only for the address that asked for it. Console proxies are told when they connect.";
        CONSOLE_SESSION_CLEANUP_INTERVAL = "console.session.cleanup.interval" HOURS, "180",
            "Time (hours) between two purges of old console sessions.";
        CONSOLE_SESSION_CLEANUP_RETENTION = "console.session.cleanup.retention.hours" HOURS, "240",
            "Time (hours) that ended console sessions are kept.";
    }
    "Secondary Storage" {
        SECSTORAGE_SESSION_MAX = "secstorage.session.max" Number(1, 100_000), "50",
            "Commands that one secondary storage VM takes at the same time.";
        SECSTORAGE_CAPACITY_STANDBY = "secstorage.capacity.standby" Number(0, 100_000), "10",
            "Free commands in a zone below which another secondary storage VM is started.";
        SECSTORAGE_CAPACITYSCAN_INTERVAL = "secstorage.capacityscan.interval" MILLISECONDS, "30000",
            "Time (ms) between two looks at the secondary storage VMs.";
        SECSTORAGE_CMD_EXECUTION_TIME_MAX = "secstorage.cmd.execution.time.max" MINUTES, "30",
            "Time (minutes) after which a command does not count as running any more.";
        SECSTORAGE_VM_AUTO_SCALE_DOWN = "secstorage.vm.auto.scale.down" Flag, "false",
            "Whether further secondary storage VMs are destroyed when they have nothing to do.";
        SYSTEM_VM_AUTO_RESERVE_CAPACITY = "system.vm.auto.reserve.capacity" Flag, "true",
            "Whether secondary storage VMs are started when they are needed.";
        SECSTORAGE_VM_RAM_SIZE = "secstorage.vm.ram.size" Number(64, 65_536), "512",
            "Memory (MiB) of a secondary storage VM, from its next start on.";
        SECSTORAGE_VM_MTU_SIZE = "secstorage.vm.mtu.size" Number(576, 9216), "1500",
            "MTU of a secondary storage VM's NICs, from its next start on.";
        SECSTORAGE_PROXY = "secstorage.proxy" Text, "",
            "HTTP proxy for downloads, as host or host:port.";
        STORE_DOWNLOAD_FOLLOW_REDIRECTS = "store.download.follow.redirects" Flag, "true",
            "Whether downloads follow redirects. CloudStack's default is false; here each hop is checked like the first.";
        SECSTORAGE_ALLOWED_INTERNAL_SITES = "secstorage.allowed.internal.sites" Networks, "",
            "Networks (CIDR) inside of which templates may be downloaded from, comma-separated.";
        SECSTORAGE_NFS_VERSION = "secstorage.nfs.version" Word, "",
            "NFS version of image stores that say nothing themselves.";
        SECONDARY_STORAGE_CAPACITY_THRESHOLD = "secondary.storage.capacity.threshold" Fraction(0.0, 1.0), "0.90",
            "Used part of an image store above which nothing new goes there.";
        MAX_TEMPLATE_ISO_SIZE = "max.template.iso.size" Number(1, 1_000_000), "50",
            "Size (GB) of a template or ISO that is downloaded, at most.";
        STORAGE_STATS_INTERVAL = "storage.stats.interval" MILLISECONDS, "60000",
            "Time (ms) between two looks at the image stores' space.";
        TEMPLATE_DOWNLOAD_POLL_INTERVAL = "template.download.poll.interval" MILLISECONDS, "2000",
            "Time (ms) between two questions for the progress of a download. Our own setting.";
        TEMPLATE_DOWNLOAD_RETRY_INTERVAL = "template.download.retry.interval" MILLISECONDS, "2000",
            "Time (ms) before a failed download is tried again; doubles with each of the five attempts. Our own setting.";
        SYSTEMVM_INSTANCE_NAME = "instance.name" Word, "VM",
            "Last part of instance names, as in s-1-VM.";
    }
    "System VMs" {
        RELEASE_CONTROL_IP = "systemvm.release.control.ip.on.stop" Flag, "true",
            "Whether a system VM that is stopped gives its control address back.";
        PUBLIC_IP_STRICTNESS = "system.vm.public.ip.reservation.mode.strictness" Flag, "false",
            "Whether system VMs take only public addresses of ranges that are for them.";
        MANAGEMENT_IP_STRICTNESS = "system.vm.management.ip.reservation.mode.strictness" Flag, "false",
            "Whether system VMs take only management addresses of ranges that are for them.";
        HA_ENABLED = "vm.ha.enabled" Flag, "true",
            "Whether system VMs that end, hang or lose their agent are started again at once.";
        AGENT_START_LIMIT = "systemvm.agent.start.limit" SECONDS, "300",
            "Time (s) after its start within which a system VM's agent must be Up, or the VM is started again. 0: never. Our own setting.";
        AGENT_SILENCE_LIMIT = "systemvm.agent.silence.limit" SECONDS, "300",
            "Time (s) without an agent that was Up before, after which its system VM is started again. 0: never. Our own setting.";
        HYPERVISOR_SILENCE_LIMIT = "systemvm.hang.limit" SECONDS, "30",
            "Time (s) after which a system VM that does not answer who runs it is started again. 0: never. Our own setting.";
    }
    "Advanced" {
        HYPERVISOR_LIST = "hypervisor.list" List, "KVM,XenServer,VMware,Hyperv",
            "Hypervisors that templates may be for, comma-separated.";
        JOB_EXPIRE_MINUTES = "job.expire.minutes" MINUTES, "1440",
            "Time (minutes) that finished jobs are kept.";
        EXPUNGE_DELAY = "expunge.delay" SECONDS, "86400",
            "Time (seconds) after which an instance that was destroyed is removed for good.";
        EXPUNGE_INTERVAL = "expunge.interval" SECONDS, "86400",
            "Time (seconds) between two looks for instances to remove for good.";
        ALLOW_USER_EXPUNGE_RECOVER_VM = "allow.user.expunge.recover.vm" Flag, "false",
            "Whether users may remove their instances for good at once, and recover those that they have destroyed.";
        EVENT_PURGE_DELAY = "event.purge.delay" DAYS, "15",
            "Time (days) that events are kept; 0 is for ever.";
        ALERT_PURGE_DELAY = "alert.purge.delay" DAYS, "0",
            "Time (days) that alerts are kept; 0 is for ever.";
    }
    "API" {
        DEFAULT_PAGE_SIZE = "default.page.size" Number(1, 10_000), "500",
            "Rows of a list without pages, and of a page, at most.";
        DEFAULT_UI_PAGE_SIZE = "default.ui.page.size" Number(1, 10_000), "20",
            "Rows of a page in the web page.";
        SESSION_TIMEOUT = "session.timeout" MINUTES, "30",
            "Time (minutes) after which an unused session ends. Our own setting.";
        SESSIONKEY_CHECK_LOCATIONS = "api.sessionkey.check.locations"
            OneOf(&["CookieAndParameter", "ParameterOnly"]), "CookieAndParameter",
            "Where the session key must be.";
        ALLOWED_SOURCE_CIDRS = "api.allowed.source.cidr.list" Networks, "0.0.0.0/0,::/0",
            "Networks (CIDR) from which the API may be called, comma-separated.";
    }
}
