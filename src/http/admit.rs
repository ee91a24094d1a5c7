//! Whether a request is meant for this node, from its head alone; everything that is bound to fail ends here, before a
//! body is sent.
//!
//! A page from elsewhere must not reach a node through the browser of somebody who can. No node takes writes that a
//! page of another origin makes. A page may also have its own name point at a node, and is of the node's origin then.
//! So there are names that nobody can point at a node from outside: addresses, `localhost`, and names without a dot. A
//! node on loopback answers to no others. One that other machines reach answers programs by any name, that of a load
//! balancer for example, which it cannot know; but what a page writes it takes under those names only.

use super::{Head, Headers, Problem, Routed, problem::shown, route};
use crate::types::Media;
use std::net::IpAddr;

/// What is asked, or why nothing will come of it. `loopback`: the node listens on this machine only.
pub fn admit(head: &Head, loopback: bool) -> Result<Routed, Problem> {
    let (authority, target) = split_target(head.target());
    let host = host(head, authority)?;
    let routed = route(head.method(), target, head)?;
    // A probe may use whatever name it likes: these two answers tell nothing.
    if !matches!(routed, Routed::Healthz | Routed::Readyz) {
        if loopback {
            check_host(host)?;
        }
        check_origin(head, host)?;
    }
    check_expectation(head)?;
    if head.has_body() && head.method() != "PUT" {
        let method = head.method();
        let detail = match method {
            "DELETE" => "a DELETE has no body; the context of a read goes into the header X-Version-Context".to_owned(),
            _ => format!("a {method} has no body"),
        };
        return Err(Problem::bad_request(detail));
    }
    Ok(routed)
}

/// The target of a proxy's request names the host too: `http://host/path`.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let Some(scheme) = target.get(..7).filter(|s| s.eq_ignore_ascii_case("http://")) else { return (None, target) };
    let rest = &target[scheme.len()..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (Some(&rest[..end]), if end == rest.len() { "/" } else { &rest[end..] })
}

/// The host that is asked, with its port; empty when HTTP/1.0 names none.
fn host<'a>(head: &'a Head, authority: Option<&'a str>) -> Result<&'a str, Problem> {
    let given = head.value("host", 0);
    if head.value("host", 1).is_some() {
        return Err(Problem::bad_request("the header Host is given twice"));
    }
    if given.is_none() && !head.old {
        return Err(Problem::bad_request("an HTTP/1.1 request has a header Host"));
    }
    let given = std::str::from_utf8(given.unwrap_or_default()).ok();
    let wellformed = |h: &&str| !h.contains(['/', '@', '?', '#', ' ', ',']);
    given
        .filter(wellformed)
        .map(|given| authority.unwrap_or(given))
        .ok_or_else(|| Problem::bad_request("Host is a name or an address, and perhaps a port"))
}

/// The name, in lower case, without its port.
fn name(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        _ if host.parse::<IpAddr>().is_ok() => host,
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    name.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

/// Whether nobody outside can have the name point at this node.
fn is_own(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || !name.contains(['.', ':']) || name.ends_with(".localhost")
}

fn check_host(host: &str) -> Result<(), Problem> {
    let name = name(host);
    if is_own(&name) {
        return Ok(());
    }
    let detail = format!(
        "this node listens on loopback and does not answer to the name {}: ask for localhost or for its address; a \
         proxy on this machine passes that on as Host",
        shown(&name)
    );
    Err(Problem::new(421, "foreign_host", detail))
}

/// A write by a page of another origin, or by one whose name may have been pointed here. Browsers say who writes; other
/// clients send neither header.
fn check_origin(head: &Head, host: &str) -> Result<(), Problem> {
    if matches!(head.method(), "GET" | "HEAD" | "OPTIONS") {
        return Ok(());
    }
    let mut origins = (0..2).filter_map(|index| head.value("origin", index)).peekable();
    let by_page = origins.peek().is_some();
    let same = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
    };
    let foreign = origins.filter(|o| !same(o)).count() > 0;
    let elsewhere = head.list("sec-fetch-site").any(|site| !matches!(site, b"same-origin" | b"none"));
    if foreign || elsewhere {
        let detail = "a page of another origin asks for this write; write from a page that this node serves, or from a \
                      program";
        return Err(Problem::new(403, "foreign_origin", detail));
    }
    let name = name(host);
    if by_page && !is_own(&name) {
        let detail = format!(
            "a page writes under the name {}, which anybody may have pointed at this node: write from a page under the \
             node's address, or from a program, which sends no Origin",
            shown(&name)
        );
        return Err(Problem::new(403, "foreign_origin", detail));
    }
    Ok(())
}

fn check_expectation(head: &Head) -> Result<(), Problem> {
    let met = |e: &[u8]| e.eq_ignore_ascii_case(b"100-continue");
    match head.list("expect").find(|e| !met(e)) {
        Some(other) if !head.old => {
            let other = shown(&String::from_utf8_lossy(other));
            let detail = format!("of expectations only 100-continue is understood, not {other}");
            Err(Problem::new(417, "expectation_failed", detail))
        }
        _ => Ok(()),
    }
}

/// Refuses what a write says of itself that would be lost: an encoding, a range, a condition.
pub(super) fn check_write<H: Headers + ?Sized>(headers: &H) -> Result<(), Problem> {
    let encoded = super::head::list(headers, "content-encoding").find(|e| !e.eq_ignore_ascii_case(b"identity"));
    if let Some(encoding) = encoded {
        let encoding = shown(&String::from_utf8_lossy(encoding));
        let detail = format!(
            "Content-Encoding {encoding} would be lost: send the value as it is, or with Content-Type {} and a name of \
             your own for what it is",
            Media::OCTETS
        );
        return Err(Problem::new(415, "content_encoding", detail));
    }
    if headers.value("content-range", 0).is_some() {
        return Err(Problem::bad_request("Content-Range: a value is written as a whole, not in parts"));
    }
    check_conditions(headers, &["if-match", "if-none-match"])
}

/// Refuses conditions that are not understood: passed over in silence they would do harm.
pub(super) fn check_conditions<H: Headers + ?Sized>(headers: &H, names: &[&str]) -> Result<(), Problem> {
    match names.iter().find(|name| headers.value(name, 0).is_some()) {
        Some(name) => {
            let detail = format!(
                "the condition {name} is not understood yet; read the key and send its context back as \
                 X-Version-Context"
            );
            Err(Problem::not_implemented(detail))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HeadReader;
    use bytes::BytesMut;

    fn asked(text: &str, loopback: bool) -> Result<Routed, Problem> {
        let text = text.replace('\n', "\r\n") + "\r\n\r\n";
        let head = HeadReader::default().take(&mut BytesMut::from(text.as_bytes())).expect("a head").expect("whole");
        admit(&head, loopback)
    }
    fn status(text: &str, loopback: bool) -> u16 {
        asked(text, loopback).map_or_else(|problem| problem.status, |_| 200)
    }

    #[test]
    fn a_name_from_elsewhere_is_not_this_node() {
        let hosts = ["localhost", "localhost:7700", "LOCALHOST.", "127.0.0.2:7700", "[::1]:7700", "[::1]", "::1", "x"];
        let hosts = hosts.into_iter().chain(["db-1:80", "10.1.2.3", "a.localhost:7700", ""]);
        for host in hosts {
            assert_eq!(status(&format!("GET /v1/node HTTP/1.1\nHost: {host}"), true), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:7700", "127.0.0.1.evil.example", "localhost.evil.example", "a:b.c"] {
            for target in ["/v1/node", "/v1/keys/k", "/v1/tables"] {
                assert_eq!(status(&format!("GET {target} HTTP/1.1\nHost: {host}"), true), 421, "{host}");
                assert_eq!(status(&format!("GET {target} HTTP/1.1\nHost: {host}"), false), 200, "{host}");
            }
            assert_eq!(status(&format!("GET /healthz HTTP/1.1\nHost: {host}"), true), 200, "a probe");
            assert_eq!(status(&format!("GET http://{host}/v1/node HTTP/1.1\nHost: localhost"), true), 421, "{host}");
        }
        assert_eq!(status("GET http://localhost:7700/v1/node HTTP/1.1\nHost: evil.example", true), 200);
        for bad in ["", "\nHost: a\nHost: a", "\nHost: a/b", "\nHost: u@a", "\nHost: a, b"] {
            assert_eq!(status(&format!("GET /v1/node HTTP/1.1{bad}"), true), 400, "{bad}");
        }
        assert_eq!(status("GET /v1/node HTTP/1.0", true), 200);
    }

    #[test]
    fn a_page_from_elsewhere_does_not_write() {
        let write = |headers: &str| {
            status(&format!("PUT /v1/keys/k HTTP/1.1\nHost: localhost:7700\nContent-Length: 11{headers}"), false)
        };
        for own in
            ["", "\nOrigin: http://localhost:7700", "\nOrigin: https://LOCALHOST:7700\nSec-Fetch-Site: same-origin"]
        {
            assert_eq!(write(own), 200, "{own}");
        }
        let foreign =
            ["http://localhost:3000", "http://evil.example", "null", "", "http://localhost:7700.evil.example"];
        for origin in foreign {
            assert_eq!(write(&format!("\nOrigin: {origin}")), 403, "{origin}");
            let delete = format!("DELETE /v1/keys/k HTTP/1.1\nHost: localhost:7700\nOrigin: {origin}");
            assert_eq!(status(&delete, true), 403, "{origin}");
            // What is read is not shown to the page: no header allows it.
            let get = format!("GET /v1/keys/k HTTP/1.1\nHost: localhost:7700\nOrigin: {origin}");
            assert_eq!(status(&get, true), 200, "{origin}");
        }
        assert_eq!(write("\nSec-Fetch-Site: cross-site"), 403);
        assert_eq!(write("\nSec-Fetch-Site: same-site"), 403);
        assert_eq!(write("\nSec-Fetch-Site: none"), 200);
    }

    #[test]
    fn a_page_whose_own_name_points_here_does_not_write_and_a_program_may_use_the_name_of_a_balancer() {
        for (host, own) in [
            ("rebound.example:7700", false),
            ("10.1.2.3.rebound.example", false),
            ("10.1.2.3:7700", true),
            ("[fd00::1]:7700", true),
            ("db-1:7700", true),
        ] {
            for method in ["PUT", "DELETE"] {
                let write = format!("{method} /v1/keys/k HTTP/1.1\nHost: {host}");
                assert_eq!(status(&write, false), 200, "a program at {host}");
                let by_page = format!("{write}\nOrigin: http://{host}");
                assert_eq!(status(&by_page, false), if own { 200 } else { 403 }, "a page at {host}");
            }
            assert_eq!(status(&format!("GET /v1/keys/k HTTP/1.1\nHost: {host}"), false), 200, "{host}");
        }
    }

    #[test]
    fn expectations_and_bodies() {
        let put = "PUT /v1/keys/k HTTP/1.1\nHost: x\nContent-Length: 3";
        assert_eq!(status(&format!("{put}\nExpect: 100-Continue"), true), 200);
        assert_eq!(status(&format!("{put}\nExpect: the-spanish-inquisition"), true), 417);
        assert_eq!(status(&format!("{put}\nExpect: 100-continue, more"), true), 417);
        for method in ["GET", "HEAD", "DELETE"] {
            let empty = format!("{method} /v1/keys/k HTTP/1.1\nHost: x\nContent-Length: 0");
            assert_eq!(status(&empty, true), 200, "{method}");
            for body in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
                let problem = asked(&format!("{method} /v1/keys/k HTTP/1.1\nHost: x\n{body}"), true).expect_err(method);
                assert_eq!((problem.status, problem.detail.contains("has no body")), (400, true), "{method}");
            }
        }
        assert_eq!(status("OPTIONS * HTTP/1.1\nHost: x", true), 404);
        assert_eq!(status("CONNECT a:1 HTTP/1.1\nHost: x", true), 404);
    }
}
