//! How many system VMs a zone needs: pure decisions (management.md §6, §7, §9). Who carries them out is
//! [`crate::system_vms`].

use crate::instance_state::InstanceState;
use crate::store::id::InstanceId;

/// What to do in one pass, for one zone and one kind of system VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing, for this reason.
    Nothing(&'static str),
    /// Start this one.
    Start(InstanceId),
    /// Make a new one and start it. The role is that of an SSVM.
    Create(Role),
    /// One too many.
    Destroy(InstanceId),
}

/// What an SSVM is for. Console proxies have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A console proxy.
    None,
    /// The first SSVM of a zone.
    TemplateProcessor,
    /// Further ones, under load.
    CommandExecutor,
}

impl Role {
    /// `role=` of the boot arguments.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::TemplateProcessor => Some("templateProcessor"),
            Self::CommandExecutor => Some("commandExecutor"),
        }
    }
}

/// What is known of one system VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub id: InstanceId,
    /// Its state.
    pub state: InstanceState,
    /// Whether its agent is Up.
    pub is_agent_up: bool,
    /// Sessions of a console proxy, or counted commands of an SSVM.
    pub load: u32,
    /// Whether it has been without load for long enough to be one too many.
    pub is_idle: bool,
}

/// Settings of one pool, by their names in CloudStack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    /// `consoleproxy.session.max`, `secstorage.session.max`.
    pub session_max: u32,
    /// `consoleproxy.capacity.standby`, `secstorage.capacity.standby`.
    pub capacity_standby: u32,
    /// `consoleproxy.launch.max`; SSVMs have no such limit.
    pub launch_max: u32,
    /// `consoleproxy.restart`.
    pub restart: bool,
    /// `secstorage.vm.auto.scale.down`, and our own `consoleproxy.vm.auto.scale.down`.
    pub scale_down: bool,
}

impl PoolSettings {
    /// CloudStack's defaults for console proxies.
    pub const CONSOLE_PROXY: Self = Self {
        session_max: 50,
        capacity_standby: 10,
        launch_max: 10,
        restart: true,
        scale_down: false,
    };
    /// CloudStack's defaults for SSVMs.
    pub const SECONDARY_STORAGE: Self = Self {
        launch_max: u32::MAX,
        ..Self::CONSOLE_PROXY
    };
}

/// Console proxies: management.md §7. CloudStack never shrinks the pool; ours does when it is told to: the newest idle one
/// goes as long as the others alone would not call for another.
pub fn console_proxies(pool: &[Member], settings: &PoolSettings) -> Action {
    use InstanceState::*;
    if pool.iter().any(|proxy| matches!(proxy.state, Starting | Stopping)) {
        return Action::Nothing("one is being started or stopped");
    }
    let is_of_use = |proxy: &&Member| matches!(proxy.state, Starting | Running | Migrating);
    let capacity = total(pool.iter().filter(is_of_use).map(|_| settings.session_max));
    let free = capacity.saturating_sub(total(pool.iter().filter(is_of_use).map(|proxy| proxy.load)));
    if free > settings.capacity_standby {
        let is_room_without_one = free.saturating_sub(settings.session_max) > settings.capacity_standby;
        let mut idle = pool
            .iter()
            .rev()
            .filter(|proxy| proxy.state == Running && proxy.load == 0 && proxy.is_idle);
        return match idle.next() {
            Some(idle) if settings.scale_down && is_room_without_one => Action::Destroy(idle.id),
            _ => Action::Nothing("there is room for more sessions"),
        };
    }
    if let Some(stopped) = pool.iter().find(|proxy| proxy.state == Stopped) {
        return if settings.restart {
            Action::Start(stopped.id)
        } else {
            Action::Nothing("consoleproxy.restart is false")
        };
    }
    let counts = |proxy: &&Member| {
        matches!(
            proxy.state,
            Starting | Running | Stopping | Stopped | Migrating | Shutdown | Unknown
        )
    };
    if pool.iter().filter(counts).count() >= usize::try_from(settings.launch_max).unwrap_or(usize::MAX) {
        return Action::Nothing("there are consoleproxy.launch.max of them");
    }
    Action::Create(Role::None)
}

/// SSVMs: the rules of management.md §9 in their order. Rule 4 (data migration) has nothing to look at here.
pub fn secondary_storage(pool: &[Member], settings: &PoolSettings) -> Action {
    use InstanceState::*;
    let expand = |role| match pool.iter().find(|vm| vm.state == Stopped) {
        Some(stopped) => Action::Start(stopped.id),
        None => Action::Create(role),
    };
    let Some(first) = pool
        .iter()
        .find(|vm| matches!(vm.state, Running | Migrating | Starting))
    else {
        return if pool.iter().any(|vm| vm.state == Stopping) {
            Action::Nothing("one is being stopped")
        } else {
            expand(Role::TemplateProcessor)
        };
    };
    if !first.is_agent_up {
        return Action::Nothing("the agent of the first one is not Up");
    }
    let running: Vec<&Member> = pool.iter().filter(|vm| vm.state == Running).collect();
    let active = total(running.iter().map(|vm| vm.load));
    let capacity = total(running.iter().map(|_| settings.session_max));
    if capacity.saturating_sub(active) < settings.capacity_standby {
        let is_coming = pool.iter().any(|vm| vm.state == Starting);
        return if is_coming {
            Action::Nothing("one is being started")
        } else {
            expand(Role::CommandExecutor)
        };
    }
    let others = total(running.iter().skip(1).map(|_| settings.session_max));
    if settings.scale_down
        && running.len() > 1
        && active < others / 2
        && let Some(idle) = running.iter().skip(1).rev().find(|vm| vm.load == 0)
    {
        return Action::Destroy(idle.id);
    }
    Action::Nothing("there is room for more commands")
}

fn total(values: impl Iterator<Item = u32>) -> u32 {
    values.fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use InstanceState::*;
    use proptest::prelude::*;

    use super::*;

    fn pool(members: &[(InstanceState, u32)]) -> Vec<Member> {
        let member = |(index, (state, load)): (usize, &(InstanceState, u32))| Member {
            id: InstanceId(i64::try_from(index).unwrap() + 1),
            state: *state,
            is_agent_up: true,
            load: *load,
            is_idle: true,
        };
        members.iter().enumerate().map(member).collect()
    }

    fn proxies(members: &[(InstanceState, u32)]) -> Action {
        console_proxies(&pool(members), &PoolSettings::CONSOLE_PROXY)
    }

    fn ssvms(members: &[(InstanceState, u32)]) -> Action {
        secondary_storage(&pool(members), &PoolSettings::SECONDARY_STORAGE)
    }

    #[test]
    fn console_proxies_follow_the_rule_of_cloudstack() {
        let another = Action::Create(Role::None);
        assert_eq!(proxies(&[]), another, "an empty zone");
        assert!(matches!(proxies(&[(Running, 0)]), Action::Nothing(_)));
        // management.md §20, item 4.
        assert!(matches!(proxies(&[(Running, 39)]), Action::Nothing(_)));
        assert_eq!(proxies(&[(Running, 40)]), another, "free is 10, not more than 10");
        assert_eq!(proxies(&[(Running, 41)]), another);
        assert!(matches!(proxies(&[(Running, 50), (Running, 39)]), Action::Nothing(_)));
        assert!(matches!(proxies(&[(Running, 50), (Starting, 0)]), Action::Nothing(_)));
        assert!(
            matches!(proxies(&[(Stopping, 0)]), Action::Nothing(_)),
            "not ready meanwhile"
        );
        assert_eq!(proxies(&[(Stopped, 0)]), Action::Start(InstanceId(1)));
        assert_eq!(proxies(&[(Running, 45), (Stopped, 0)]), Action::Start(InstanceId(2)));
        assert_eq!(proxies(&[(Error, 0)]), another);
        assert!(
            matches!(proxies(&[(Running, 50); 10]), Action::Nothing(_)),
            "launch.max"
        );
        let settings = PoolSettings {
            restart: false,
            ..PoolSettings::CONSOLE_PROXY
        };
        assert!(matches!(
            console_proxies(&pool(&[(Stopped, 0)]), &settings),
            Action::Nothing(_)
        ));
    }

    #[test]
    fn ssvms_follow_the_rules_in_their_order() {
        assert_eq!(ssvms(&[]), Action::Create(Role::TemplateProcessor));
        assert!(matches!(ssvms(&[(Stopping, 0)]), Action::Nothing(_)));
        assert_eq!(ssvms(&[(Stopped, 0)]), Action::Start(InstanceId(1)));
        assert!(matches!(ssvms(&[(Starting, 0)]), Action::Nothing(_)));
        // management.md §20, item 5: the comparison is strict here.
        assert!(matches!(ssvms(&[(Running, 40)]), Action::Nothing(_)));
        assert_eq!(ssvms(&[(Running, 41)]), Action::Create(Role::CommandExecutor));
        assert_eq!(ssvms(&[(Running, 41), (Stopped, 0)]), Action::Start(InstanceId(2)));
        assert!(matches!(ssvms(&[(Running, 41), (Starting, 0)]), Action::Nothing(_)));
        let mut silent = pool(&[(Running, 41)]);
        silent[0].is_agent_up = false;
        let settings = PoolSettings::SECONDARY_STORAGE;
        assert!(matches!(secondary_storage(&silent, &settings), Action::Nothing(_)));
    }

    #[test]
    fn idle_executors_go_only_when_that_is_wanted() {
        let members = pool(&[(Running, 5), (Running, 0), (Running, 1)]);
        let settings = PoolSettings::SECONDARY_STORAGE;
        assert!(matches!(secondary_storage(&members, &settings), Action::Nothing(_)));
        let settings = PoolSettings {
            scale_down: true,
            ..settings
        };
        assert_eq!(secondary_storage(&members, &settings), Action::Destroy(InstanceId(2)));
        let busy = pool(&[(Running, 25), (Running, 0)]);
        assert!(matches!(secondary_storage(&busy, &settings), Action::Nothing(_)));
        let only = pool(&[(Running, 0)]);
        assert!(matches!(secondary_storage(&only, &settings), Action::Nothing(_)));
    }

    #[test]
    fn idle_proxies_go_only_when_that_is_wanted_and_the_others_have_room() {
        let shrinking = PoolSettings {
            scale_down: true,
            ..PoolSettings::CONSOLE_PROXY
        };
        let shrink = |members: &[(InstanceState, u32)]| console_proxies(&pool(members), &shrinking);
        assert!(
            matches!(proxies(&[(Running, 0), (Running, 0)]), Action::Nothing(_)),
            "off by default"
        );
        assert_eq!(shrink(&[(Running, 0), (Running, 0)]), Action::Destroy(InstanceId(2)));
        assert_eq!(shrink(&[(Running, 0), (Running, 39)]), Action::Destroy(InstanceId(1)));
        assert!(
            matches!(shrink(&[(Running, 0), (Running, 40)]), Action::Nothing(_)),
            "alone it would call for another"
        );
        assert!(
            matches!(shrink(&[(Running, 1), (Running, 1)]), Action::Nothing(_)),
            "all are in use"
        );
        assert!(
            matches!(shrink(&[(Running, 0)]), Action::Nothing(_)),
            "the last one stays"
        );
        let mut busy_lately = pool(&[(Running, 0), (Running, 0)]);
        for member in &mut busy_lately {
            member.is_idle = false;
        }
        assert!(matches!(console_proxies(&busy_lately, &shrinking), Action::Nothing(_)));
    }

    proptest! {
        #[test]
        fn decisions_name_members_only(states in prop::collection::vec((0..10_usize, 0..u32::MAX, any::<bool>()), 0..12)) {
            let members: Vec<Member> = states.iter().enumerate().map(|(index, (state, load, up))| Member {
                id: InstanceId(i64::try_from(index).unwrap()),
                state: InstanceState::ALL[*state],
                is_agent_up: *up,
                load: *load,
                is_idle: *up,
            }).collect();
            let scaling = PoolSettings { scale_down: true, ..PoolSettings::SECONDARY_STORAGE };
            let shrinking = PoolSettings { scale_down: true, ..PoolSettings::CONSOLE_PROXY };
            for action in [
                console_proxies(&members, &PoolSettings::CONSOLE_PROXY),
                console_proxies(&members, &shrinking),
                secondary_storage(&members, &scaling),
            ] {
                let find = |id| members.iter().find(|member| member.id == id).map(|member| member.state);
                match action {
                    Action::Start(id) => prop_assert_eq!(find(id), Some(Stopped)),
                    Action::Destroy(id) => prop_assert_eq!(find(id), Some(Running)),
                    Action::Create(_) | Action::Nothing(_) => {}
                }
            }
        }
    }
}
