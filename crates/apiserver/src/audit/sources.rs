//! Where a request came from: the proxies' headers first, then the connection's other end.

use std::net::IpAddr;

use http::HeaderMap;

/// Most addresses that are believed to be worth keeping.
const MOST: usize = 32;

/// The addresses, the client's own first.
pub fn of(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let mut found: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parse).take(MOST).collect();
    if found.is_empty() {
        found.extend(parse(text("x-real-ip")));
    }
    if let Some(peer) = peer.map(|ip| ip.to_canonical())
        && found.last() != Some(&peer)
    {
        found.push(peer);
    }
    found.iter().map(ToString::to_string).collect()
}

fn parse(text: &str) -> Option<IpAddr> {
    text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_proxies_and_the_peer() {
        let check = |headers: &[(&'static str, &'static str)], expect: &[&str]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            let got = of(&headers.collect(), Some([10, 0, 0, 1].into()));
            assert_eq!(got, expect);
        };
        check(&[], &["10.0.0.1"]);
        check(&[("x-forwarded-for", "1.2.3.4, 10.0.0.1")], &["1.2.3.4", "10.0.0.1"]);
        check(&[("x-forwarded-for", "nonsense"), ("x-real-ip", "::ffff:1.2.3.4")], &["1.2.3.4", "10.0.0.1"]);
    }
}
