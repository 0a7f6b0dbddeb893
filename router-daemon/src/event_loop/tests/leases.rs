//! Leases of lines over a fake kernel.

use std::net::IpAddr;

use config::units::WanName;
use mwan::lease::{Gone, Lease};

use super::*;
use crate::lease::News;

#[tokio::test]
async fn a_line_without_a_lease_leaves_the_rest_of_the_site_working() {
    let bench = Bench::start(None);
    bench.apply(&leased()).await.unwrap();
    assert_eq!(bench.wan1(), Vec::<String>::new());
    let state = bench.kernel.state();
    assert_eq!(state.addresses.iter().filter(|address| address.link.as_str() == "eth1").count(), 1);
    let view = bench.view().await;
    let line = &view.snapshot.wans[0].families[&Family::V4];
    assert_eq!(line.lease.as_ref().unwrap().why.as_deref(), Some("no lease yet"));
}

#[tokio::test]
async fn a_lease_is_put_into_the_kernel_and_its_end_takes_it_out() {
    let bench = Bench::start(None);
    let digest = bench.apply(&leased()).await.unwrap().digest;
    bench.grant("203.0.113.50/24", "203.0.113.1", 3600).await;
    bench.until(|bench| bench.wan1() == ["203.0.113.50/24"]).await;
    let gateways = |bench: &Bench| {
        let routes = bench.kernel.state().routes;
        let hops = routes.values().filter_map(|hop| match hop {
            mwan::state::NextHop::Gateway { link, gateway, .. } if link.as_str() == "eth0" => Some(*gateway),
            mwan::state::NextHop::Gateway { .. }
            | mwan::state::NextHop::Direct { .. }
            | mwan::state::NextHop::Unreachable => None,
        });
        hops.collect::<std::collections::BTreeSet<IpAddr>>()
    };
    bench.until(|bench| gateways(bench) == ["203.0.113.1".parse().unwrap()].into()).await;
    bench.until(|bench| bench.ended() == [digest.clone(), digest.clone()]).await;
    let view = bench.view().await;
    assert_eq!(view.config.unwrap().wans[&wan1()].source(Family::V4), Some("203.0.113.50".parse().unwrap()));

    // The same again is no work for the kernel, and no flow is judged.
    bench.kernel.take_applied();
    for _ in 0..5 {
        bench.grant("203.0.113.50/24", "203.0.113.1", 3600).await;
    }
    bench.view().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.kernel.take_applied(), []);
    assert_eq!(bench.ended().len(), 2);

    bench.grant("203.0.113.50/24", "203.0.113.254", 3600).await;
    bench.until(|bench| gateways(bench) == ["203.0.113.254".parse().unwrap()].into()).await;
    bench.until(|bench| bench.ended().len() == 3).await;
    bench.leases.send(told(News::Gone(Gone::Refused))).await.unwrap();
    bench.until(|bench| bench.wan1().is_empty() && bench.ended().len() == 4).await;
    assert!(bench.kernel.state().routes.values().all(|hop| !format!("{hop:?}").contains("eth0")));
    assert_eq!(bench.running(), Some(leased()), "what is kept is what was written");

    // Its own end comes without anybody.
    bench.grant("203.0.113.51/24", "203.0.113.1", 1).await;
    bench.until(|bench| bench.wan1() == ["203.0.113.51/24"]).await;
    bench.until(|bench| bench.wan1().is_empty()).await;
    let why = bench.view().await.snapshot.wans[0].families[&Family::V4].why.clone();
    assert_eq!(why, "interface eth0 is missing, down or without carrier");
}

#[tokio::test]
async fn a_restart_with_a_lease_that_holds_touches_nothing() {
    let mut bench = Bench::start(Some(&leased()));
    bench.ready().await;
    bench.grant("203.0.113.50/24", "203.0.113.1", 3600).await;
    bench.until(|bench| bench.wan1() == ["203.0.113.50/24"]).await;
    bench.until(|bench| bench.ended().len() == 2).await;
    let state = bench.kernel.state();
    bench.restart_with(Duration::ZERO, vec![told(held("203.0.113.50/24", "203.0.113.1", 3000))]).await;
    bench.ready().await;
    assert_eq!(bench.kernel.take_applied(), []);
    assert_eq!(bench.kernel.state(), state);
    // Without it the line has no address.
    bench.restart().await;
    bench.ready().await;
    assert!(bench.wan1().is_empty());
}

#[tokio::test]
async fn a_plan_and_an_apply_know_the_leases() {
    let bench = Bench::start(None);
    bench.apply(&leased()).await.unwrap();
    bench.grant("203.0.113.50/24", "203.0.113.1", 3600).await;
    bench.until(|bench| bench.wan1() == ["203.0.113.50/24"]).await;
    bench.until(|bench| bench.ended().len() == 2).await;
    assert_eq!(bench.plan(&leased()).await.unwrap().steps, []);
    let other = leased().replace("weight = 3", "weight = 2");
    bench.apply(&other).await.unwrap();
    assert_eq!(bench.wan1(), ["203.0.113.50/24"]);
    bench.apply(MINIMAL).await.unwrap();
    assert_eq!(bench.wan1(), ["203.0.113.10/24"], "the file says it again");
}

/// The minimal site, `wan1` of which has its address leased.
fn leased() -> String {
    let written = "addresses = [\"203.0.113.10/24\"]\ngateway   = \"203.0.113.1\"\n";
    assert!(MINIMAL.contains(written));
    MINIMAL.replace(written, "method = \"dhcp\"\n")
}

fn wan1() -> WanName {
    "wan1".parse().unwrap()
}

fn told(news: News) -> Told {
    Told { wan: wan1(), family: Family::V4, news }
}

fn held(address: &str, gateway: &str, seconds: u64) -> News {
    let lease = Lease {
        addresses: vec![address.parse().unwrap()],
        gateway: Some(gateway.parse().unwrap()),
        ..Lease::default()
    };
    News::Held { lease, until: Some(Instant::now() + Duration::from_secs(seconds)) }
}

impl Bench {
    async fn grant(&self, address: &str, gateway: &str, seconds: u64) {
        self.leases.send(told(held(address, gateway, seconds))).await.unwrap();
    }

    /// What the first line has in the kernel.
    fn wan1(&self) -> Vec<String> {
        let addresses = self.kernel.state().addresses;
        addresses
            .iter()
            .filter(|address| address.link.as_str() == "eth0")
            .map(|address| address.net.to_string())
            .collect()
    }

    async fn until(&self, so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !so(self) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
