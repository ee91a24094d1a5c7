//! The network of the namespace: loopback alone, and a firewall that cuts pairs of addresses, one way or both.

use std::{
    io::Write,
    net::IpAddr,
    process::{Command, Stdio},
};

/// What happens to what is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Vanishes: the other side is silent.
    Drop,
    /// Is answered with a reset: the other side is seen to be gone.
    Reset,
}

pub struct Firewall;

impl Firewall {
    /// Brings the loopback up and makes a firewall that lets everything pass. Connections that name no address of
    /// their own come from one that no node has, so that clients are not cut with the nodes.
    pub fn new() -> Firewall {
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let route = "route replace local 127.0.0.0/8 dev lo proto kernel scope host src 127.0.100.1 table local";
        run(Command::new("ip").args(route.split(' ')));
        nft("table ip cut {
            set dropped { type ipv4_addr . ipv4_addr; }
            set refused { type ipv4_addr . ipv4_addr; }
            set ports { type ipv4_addr . inet_service; }
            chain input {
                type filter hook input priority 0;
                ip saddr . ip daddr @dropped drop
                ip daddr . tcp dport @ports reject with tcp reset
                ip protocol tcp ip saddr . ip daddr @refused reject with tcp reset
            }
        }");
        Firewall
    }
    /// Cuts what goes from one address to the other.
    pub fn cut(&self, pairs: &[(IpAddr, IpAddr)], manner: Manner) {
        let set = if manner == Manner::Drop { "dropped" } else { "refused" };
        let elements: Vec<String> = pairs.iter().map(|(from, to)| format!("{from} . {to}")).collect();
        if !elements.is_empty() {
            nft(&format!("add element ip cut {set} {{ {} }}", elements.join(", ")));
        }
    }
    /// Refuses what goes to this port of the address, whoever sends it.
    pub fn close(&self, ip: IpAddr, port: u16) {
        nft(&format!("add element ip cut ports {{ {ip} . {port} }}"));
    }
    pub fn heal(&self) {
        nft("flush set ip cut dropped; flush set ip cut refused; flush set ip cut ports");
    }
}

fn nft(script: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft starts");
    child.stdin.take().expect("its input").write_all(script.as_bytes()).expect("nft reads");
    assert!(child.wait().expect("nft ends").success(), "nft: {script}");
}
fn run(command: &mut Command) {
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
}
