//! Who may ask: the checks of Host, Origin and the key, and the headers that keep a browser from more.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{self, AUTHORIZATION, HOST, ORIGIN},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::{args::ServeArgs, commands::serve::Served};

/// What a page of ours may load, which is nothing but its own files, and nothing that stands in the page itself.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Where a browser says who makes it ask.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Whether a header can hold a key, and a page send it: it is of ASCII without spaces, and not empty.
pub fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Who may ask.
#[derive(Debug, Clone)]
pub struct Guard {
    listens_at: IpAddr,
    /// Names that requests may have in Host, beside those of this machine's own address.
    names: Vec<String>,
    key: Option<String>,
}

impl Guard {
    pub fn new(args: &ServeArgs) -> Self {
        Self { listens_at: args.host, names: args.allowed_host.clone(), key: args.api_key.clone() }
    }

    /// Refuses what comes from elsewhere, or without the key.
    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        let host = self.check_host(request)?;
        self.check_origin(headers, &host)?;
        // The page asks for the key itself, and what watches a server knows none.
        let path = request.uri().path();
        let is_open = matches!(path, "/" | "/health" | "/openapi.json") || path.starts_with("/assets/");
        if is_open { Ok(()) } else { self.check_key(headers) }
    }

    /// A page of another site whose name was made to lead here (DNS rebinding) still sends that name.
    fn check_host(&self, request: &Request) -> Result<Authority, ApiError> {
        let refuse = |message: String| ApiError::new(StatusCode::MISDIRECTED_REQUEST, message).with_param("Host");
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().ok_or_else(|| refuse("the request has no Host".into()))?;
        let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        let host = host.filter(|host| !host.as_str().contains('@') && hosts.next().is_none());
        let host = host.ok_or_else(|| refuse("the request's Host is not one".into()))?;
        // What stands in the first line of a request goes before Host.
        let named = request.uri().authority().unwrap_or(&host);
        match [&host, named].into_iter().find(|authority| !self.is_own(authority.host())) {
            Some(other) => Err(refuse(format!("this server is not `{}`: --allowed-host says if it is", other.host()))),
            None => Ok(host.clone()),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match name.parse::<IpAddr>() {
            // No name was looked up for an address, so nobody could make it lead elsewhere.
            Ok(address) => address.is_loopback() || address == self.listens_at || self.listens_at.is_unspecified(),
            Err(_) => {
                let is_named = |own: &String| own.eq_ignore_ascii_case(name);
                name.eq_ignore_ascii_case("localhost") || self.names.iter().any(is_named)
            }
        }
    }

    /// A page of another site may send requests here, with its Origin.
    fn check_origin(&self, headers: &HeaderMap, host: &Authority) -> Result<(), ApiError> {
        let refuse = |message: &str| Err(ApiError::new(StatusCode::FORBIDDEN, message).with_param("Origin"));
        if let Some(origin) = headers.get(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let site = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !site.is_some_and(|site| site.eq_ignore_ascii_case(host.as_str())) {
                return refuse("a page of another site may not ask");
            }
        }
        let of = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let is_elsewhere = of(SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
        // Following a link to here is no question of the page that has the link.
        if is_elsewhere && of(SEC_FETCH_MODE) != Some("navigate") {
            return refuse("a page of another site may not ask");
        }
        Ok(())
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let refuse = |message: &str, code| {
            ApiError::new(StatusCode::UNAUTHORIZED, message).with_param("Authorization").with_code(code)
        };
        let Some(given) = headers.get(AUTHORIZATION) else {
            return Err(refuse("this server wants a key: Authorization: Bearer KEY", "missing_api_key"));
        };
        let given = given.as_bytes();
        let bearer = given.split_at_checked("Bearer ".len());
        let given =
            bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map_or(&b""[..], |(_, key)| key);
        if bool::from(given.ct_eq(key.as_bytes())) {
            Ok(())
        } else {
            Err(refuse("this is not the key of this server", "invalid_api_key"))
        }
    }
}

/// Answers who may ask, and says to browsers what they may do with any answer.
pub async fn guard(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    let mut response = match served.guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    // Files of the page say themselves how long they keep.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use axum::body::Body;

    use super::*;

    fn guard() -> Guard {
        Guard { listens_at: IpAddr::from([127, 0, 0, 1]), names: Vec::new(), key: None }
    }

    fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request {
        let mut request = axum::http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn status_of(guard: &Guard, uri: &str, headers: &[(&'static str, &str)]) -> u16 {
        guard.check(&request(uri, headers)).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let at = |host| status_of(&guard(), "/v1/models", &[("host", host)]);
        for own in ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:8000", "127.0.0.2"] {
            assert_eq!(at(own), 200, "{own}");
        }
        for other in
            ["example.com", "example.com:8000", "localhost.example.com", "192.168.0.1", "0.0.0.0", "", "a@localhost"]
        {
            assert_eq!(at(other), 421, "{other}");
        }
        assert_eq!(status_of(&guard(), "/", &[]), 421);
        assert_eq!(status_of(&guard(), "/", &[("host", "localhost"), ("host", "localhost")]), 421);
        assert_eq!(status_of(&guard(), "http://example.com/", &[("host", "localhost")]), 421);
    }

    #[test]
    fn elsewhere_an_address_is_a_host_and_a_name_is_if_it_was_given() {
        let any = Guard { listens_at: IpAddr::from([0, 0, 0, 0]), names: vec!["Gpt.example".into()], key: None };
        let at = |host| status_of(&any, "/v1/models", &[("host", host)]);
        assert_eq!([at("192.168.0.1:8000"), at("gpt.example"), at("example"), at("localhost")], [200, 200, 421, 200]);
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let from = |headers: &[(&'static str, &str)]| {
            status_of(&guard(), "/v1/models", &[&[("host", "localhost:8000")], headers].concat())
        };
        assert_eq!(from(&[("origin", "http://localhost:8000")]), 200);
        for other in ["http://localhost", "http://localhost:8001", "http://example.com", "null", "file://", ""] {
            assert_eq!(from(&[("origin", other)]), 403, "{other}");
        }
        assert_eq!(from(&[("sec-fetch-site", "same-origin")]), 200);
        assert_eq!(from(&[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(from(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]), 200);
    }

    #[test]
    fn the_key_is_wanted_for_all_but_the_page_and_what_watches() {
        let guard = Guard { key: Some("secret".into()), ..guard() };
        let with = |uri, key: &str| status_of(&guard, uri, &[("host", "localhost"), ("authorization", key)]);
        for open in ["/", "/health", "/openapi.json", "/assets/style.css"] {
            assert_eq!(status_of(&guard, open, &[("host", "localhost")]), 200, "{open}");
        }
        for closed in ["/v1/models", "/v1/completions", "/metrics", "/api/runs", "/other"] {
            assert_eq!(status_of(&guard, closed, &[("host", "localhost")]), 401, "{closed}");
            assert_eq!([with(closed, "Bearer secret"), with(closed, "bearer secret")], [200, 200]);
            for bad in ["Bearer secre", "Bearer secrets", "secret", "Basic secret", "Bearer", "Bearer "] {
                assert_eq!(with(closed, bad), 401, "{bad}");
            }
        }
    }
}
