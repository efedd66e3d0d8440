//! Who is let in: the header rules of a gateway in trusted-proxy mode. Pure.
//!
//! Stricter than upstream in one way: every peer counts as the trusted proxy, so a caller on the machine itself is
//! refused too when it forgets the forwarding headers.

use std::net::IpAddr;

use http::HeaderMap;

/// Why a request is turned away before its route is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// 403 `proxy_attribution_required`: no usable client address in `X-Forwarded-For`.
    Attribution,
    /// 401: no identity, a wrong one, or one of the required headers is missing.
    Unauthorized,
}

/// Is the client named, and not as this machine itself?
pub(crate) fn attribution(headers: &HeaderMap) -> Result<IpAddr, Denied> {
    let last = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .rfind(|item| !item.is_empty())
        .ok_or(Denied::Attribution)?;
    let address: IpAddr = last.parse().map_err(|_| Denied::Attribution)?;
    let loopback = match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    };
    if loopback { Err(Denied::Attribution) } else { Ok(address) }
}

/// Is the user named by the proxy, with the headers that must come along?
///
/// `allowed` is compared exactly, letter case included; empty means anyone who is named.
pub(crate) fn user(headers: &HeaderMap, allowed: &[String]) -> Result<String, Denied> {
    let text = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    if text("x-forwarded-proto").is_none() || text("x-forwarded-host").is_none() {
        return Err(Denied::Unauthorized);
    }
    let user = text("x-forwarded-user").ok_or(Denied::Unauthorized)?;
    if allowed.is_empty() || allowed.contains(&user) { Ok(user) } else { Err(Denied::Unauthorized) }
}

/// May this caller use the admin RPC? A browser's `Origin` must be the forwarded host; programs send none.
pub(crate) fn admin_origin(headers: &HeaderMap) -> Result<(), Denied> {
    let Some(origin) = headers.get("origin") else { return Ok(()) };
    let host = headers.get("x-forwarded-host").and_then(|value| value.to_str().ok());
    let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    if own.is_some() && own == host { Ok(()) } else { Err(Denied::Unauthorized) }
}

/// Does the caller hold `scope`? Without `x-openclaw-scopes` a named user holds them all.
pub(crate) fn has_scope(headers: &HeaderMap, scope: &str) -> bool {
    headers.get("x-openclaw-scopes").is_none_or(|value| {
        value.to_str().is_ok_and(|scopes| {
            let held = |wanted: &str| scopes.split([',', ' ']).any(|item| item.trim() == wanted);
            held(scope) || held("operator.admin")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn a_client_address_is_required_and_must_not_be_loopback() {
        assert_eq!(attribution(&headers(&[])), Err(Denied::Attribution));
        for bad in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "unknown", "10.0.0.5, 127.0.0.1"] {
            assert_eq!(attribution(&headers(&[("x-forwarded-for", bad)])), Err(Denied::Attribution), "{bad}");
        }
        assert!(attribution(&headers(&[("x-forwarded-for", "10.0.0.5")])).is_ok());
    }

    #[test]
    fn all_three_identity_headers_are_required() {
        let all = [
            ("x-forwarded-user", "owner@example.test"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "demo.example.test"),
        ];
        assert!(user(&headers(&all), &[]).is_ok());
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            some.remove(missing);
            assert_eq!(user(&headers(&some), &[]), Err(Denied::Unauthorized));
        }
        let other_case = vec!["Owner@Example.test".to_owned()];
        assert_eq!(user(&headers(&all), &other_case), Err(Denied::Unauthorized));
    }

    #[test]
    fn a_foreign_origin_may_not_use_the_admin_rpc() {
        let host = ("x-forwarded-host", "demo.example.test");
        assert!(admin_origin(&headers(&[host])).is_ok());
        assert!(admin_origin(&headers(&[host, ("origin", "https://demo.example.test")])).is_ok());
        assert!(admin_origin(&headers(&[host, ("origin", "https://evil.example.test")])).is_err());
    }

    #[test]
    fn narrower_scopes_are_honoured() {
        assert!(has_scope(&headers(&[]), "operator.admin"));
        assert!(!has_scope(&headers(&[("x-openclaw-scopes", "operator.read")]), "operator.admin"));
        assert!(has_scope(&headers(&[("x-openclaw-scopes", "operator.admin")]), "operator.read"));
    }
}
