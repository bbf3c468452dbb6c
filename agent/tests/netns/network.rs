//! NICs, addresses, routes and rules: what `ip` makes of a plan, read back.

use agent::appliance::plan::Plan;
use agent::appliance::plan::current::{Current, Order};

use super::net::Machine;
use super::{further_lines, plan, stock, stock_lines};

/// What a machine has after a plan was carried out, if it has all NICs of the plan and `more`.
fn assert_is(current: &Current, plan: &Plan, why: &str) {
    for link in &plan.links {
        let is = current.link(link.name.as_str()).unwrap();
        assert_eq!(is.is_up, link.up, "{why}: {link:?}");
        let ipv4: Vec<_> = link
            .ipv4
            .filter(|_| link.up)
            .into_iter()
            .map(|net| (net, Order::Primary))
            .collect();
        assert_eq!(is.ipv4, ipv4, "{why}: {link:?}");
        let ipv6: Vec<_> = link.ipv6.filter(|_| link.up).into_iter().collect();
        assert_eq!(is.ipv6, ipv6, "{why}: {link:?}");
        assert_eq!(is.mtu, u32::from(link.mtu.unwrap_or(1500)), "{why}: {link:?}");
    }
    for is in &current.links {
        if !plan.links.iter().any(|link| link.name.as_str() == is.name) {
            assert!(!is.is_up && is.ipv4.is_empty() && is.ipv6.is_empty(), "{why}: {is:?}");
        }
    }
    let mut routes: Vec<_> = current
        .routes
        .iter()
        .map(|route| (route.to, route.via, route.link.clone()))
        .collect();
    let mut wanted: Vec<_> = plan
        .routes
        .iter()
        .map(|route| (route.to, Some(route.via), route.link.to_string()))
        .collect();
    routes.sort();
    wanted.sort();
    assert_eq!(routes, wanted, "{why}");
    assert_eq!(current.rules, plan.rules, "{why}");
}

#[tokio::test]
async fn every_line_becomes_the_network_it_names_and_a_second_time_nothing() {
    for line in stock_lines().into_iter().chain(further_lines()) {
        let why = line.display().to_string();
        let plan = plan(&line);
        let (machine, _wires) = Machine::with_nics::<5>().await;
        machine.apply(&plan).await;
        assert_is(&machine.current().await, &plan, &why);
        assert_eq!(machine.apply(&plan).await, "", "{why}");
    }
}

#[tokio::test]
async fn every_line_replaces_every_other_and_leaves_nothing_of_it() {
    let plans: Vec<_> = stock_lines().iter().map(|line| plan(line)).collect();
    let (machine, _wires) = Machine::with_nics::<4>().await;
    for before in &plans {
        for after in &plans {
            machine.apply(before).await;
            machine.apply(after).await;
            let why = format!("{:?} after {:?}", after.hostname, before.hostname);
            assert_is(&machine.current().await, after, &why);
        }
    }
}

#[tokio::test]
async fn a_new_control_address_changes_that_and_nothing_else() {
    let (machine, _wires) = Machine::with_nics::<4>().await;
    let mut plan = stock("secondary-storage.cmdline");
    machine.apply(&plan).await;
    plan.links[0].ipv4 = Some("169.254.99.1/16".parse().unwrap());
    assert_eq!(
        machine.apply(&plan).await,
        "address del 169.254.14.87/16 dev eth0\naddress add 169.254.99.1/16 broadcast + dev eth0\n"
    );
}

#[tokio::test]
async fn an_address_in_the_place_of_its_neighbour_keeps_the_routes_of_its_nic() {
    let (machine, _wires) = Machine::with_nics::<4>().await;
    let mut plan = stock("secondary-storage.cmdline");
    machine.apply(&plan).await;
    // The kernel drops routes by a gateway when the last address of its network goes.
    plan.links[1].ipv4 = Some("192.0.2.99/24".parse().unwrap());
    machine.apply(&plan).await;
    assert_is(&machine.current().await, &plan, "eth1");
}

#[tokio::test]
async fn addresses_and_routes_that_others_have_set_are_put_right() {
    let (machine, _wires) = Machine::with_nics::<4>().await;
    let plan = stock("secondary-storage.cmdline");
    machine
        .ip(
            "address add 169.254.14.1/16 dev eth0\naddress add 169.254.14.87/16 dev eth0\nlink set eth0 up\n\
             address add 2001:db8::1/64 dev eth1\nlink set eth1 up\naddress add 203.0.113.9/24 dev eth2\nlink set eth2 up\n\
             route add default via 203.0.113.99 dev eth2\nroute add 192.168.0.0/16 via 169.254.0.1 dev eth0 proto static",
        )
        .await;
    machine.apply(&plan).await;
    assert_is(&machine.current().await, &plan, "after others");
}

#[tokio::test]
async fn addresses_of_a_dhcp_client_stay() {
    let (machine, _wires) = Machine::with_nics::<3>().await;
    let plan = further_lines()
        .iter()
        .map(|line| plan(line))
        .find(|plan| plan.links.iter().any(|link| link.dhcp));
    let plan = plan.unwrap();
    machine.apply(&plan).await;
    machine
        .ip("address add 203.0.113.50/24 dev eth2\nroute add default via 203.0.113.1 dev eth2 proto dhcp")
        .await;
    assert_eq!(machine.apply(&plan).await, "");
}

#[tokio::test]
async fn a_nic_that_comes_later_gets_its_address_and_routes_then() {
    let machine = Machine::new().await;
    machine.ip("link add eth0 type veth peer name wire0").await;
    let plan = stock("basic-zone-dhcp-server.cmdline");
    machine.apply(&plan).await;
    let missing: Vec<_> = plan
        .missing(&machine.current().await)
        .into_iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(missing, ["eth1"]);
    machine.ip("link add eth1 type veth peer name wire1").await;
    machine.apply(&plan).await;
    assert_is(&machine.current().await, &plan, "with both");
}

#[tokio::test]
async fn a_line_that_the_kernel_refuses_does_not_keep_the_others_from_being_done() {
    let (machine, _wires) = Machine::with_nics::<2>().await;
    let mut plan = stock("internal-lb.cmdline");
    let mut hopeless = plan.routes[0].clone();
    hopeless.via = "192.0.2.1".parse().unwrap(); // in no network, and not said to be on the link
    plan.routes.insert(0, hopeless);
    let batch = plan.ip_batch(&machine.current().await);
    let refused = agent::appliance::plan::changes::command(batch);
    let refused = machine.try_run(refused).await.unwrap_err().to_string();
    assert!(refused.contains("Nexthop has invalid gateway"), "{refused}");
    plan.routes.remove(0);
    assert_is(&machine.current().await, &plan, "all but that");
}
