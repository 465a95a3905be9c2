//! Who may call the API.
//!
//! A browser on the same machine can send requests to loopback, so every request must name a host that is ours
//! (against DNS rebinding) and, if it comes from a web page, an allowed origin. What moves money, changes the
//! node or reads files of its user also needs the bearer token; beyond loopback everything does.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::call::ApiError;

/// The rules of one listener.
#[derive(Clone, Debug)]
pub struct Guard {
    token: Arc<str>,
    allowed_hosts: Arc<[String]>,
    allowed_origins: Arc<[String]>,
    token_for_all: bool,
    listen: IpAddr,
}

/// Calls of Kubo's API that write outside the block store.
const GUARDED_V0: [&str; 3] = ["/api/v0/shutdown", "/api/v0/config", "/api/v0/key"];

impl Guard {
    /// Rules for a listener at `listen`.
    pub fn new(token: &str, api: &crate::config::Api) -> Self {
        Self {
            token: token.into(),
            allowed_hosts: api.allowed_hosts.clone().into(),
            allowed_origins: api.allowed_origins.clone().into(),
            token_for_all: !api.listen.ip().is_loopback(),
            listen: api.listen.ip(),
        }
    }

    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let refuse = |status, message: &str| Err(ApiError { status, message: message.to_owned() });
        if !self.host_is_ours(headers) {
            return refuse(
                StatusCode::FORBIDDEN,
                "the Host header names no host of this API; add it to api.allowed_hosts if it is right",
            );
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let allowed = origin.to_str().is_ok_and(|o| self.allowed_origins.iter().any(|a| a == o));
            if !allowed {
                return refuse(
                    StatusCode::FORBIDDEN,
                    "web pages of this origin may not call the API; api.allowed_origins lists those that may",
                );
            }
        }
        if path.starts_with("/api/v0/") && method != Method::POST {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "calls of /api/v0 are POST requests");
        }
        if self.needs_token(path) && !self.has_token(headers) {
            return refuse(
                StatusCode::UNAUTHORIZED,
                "this call needs the header `Authorization: Bearer TOKEN` with the token in the repo's file api-token; nothing was done",
            );
        }
        Ok(())
    }

    fn host_is_ours(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
            return false;
        };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            // A literal address cannot be rebound to another machine, as a name can.
            || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == self.listen || self.listen.is_unspecified())
            || self.allowed_hosts.iter().any(|allowed| allowed == name)
    }

    fn needs_token(&self, path: &str) -> bool {
        self.token_for_all
            || path.starts_with("/api/v1/")
            || GUARDED_V0.iter().any(|guarded| path == *guarded || path.starts_with(&format!("{guarded}/")))
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| same_bytes(given.trim().as_bytes(), self.token.as_bytes()))
    }
}

/// Compares without telling by its time where the first difference is.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// The middleware in front of every route.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, headers: &[(&str, &str)], api: &crate::config::Api) -> Option<StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        Guard::new("secret", api).check(&Method::POST, path, &map).err().map(|error| error.status)
    }

    #[test]
    fn who_gets_in() {
        let api = crate::config::Api::default();
        let local = ("host", "127.0.0.1:5101");
        assert_eq!(status("/api/v0/cat", &[local], &api), None);
        assert_eq!(status("/api/v0/cat", &[("host", "[::1]:5101")], &api), None);
        assert_eq!(status("/api/v0/cat", &[("host", "evil.example")], &api), Some(StatusCode::FORBIDDEN));
        assert_eq!(
            status("/api/v0/cat", &[local, ("origin", "http://evil.example")], &api),
            Some(StatusCode::FORBIDDEN)
        );
        assert_eq!(status("/api/v0/shutdown", &[local], &api), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(status("/api/v1/wallet/send", &[local], &api), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(
            status("/api/v1/wallet/send", &[local, ("authorization", "Bearer wrong!")], &api),
            Some(StatusCode::UNAUTHORIZED)
        );
        assert_eq!(status("/api/v1/wallet/send", &[local, ("authorization", "Bearer secret")], &api), None);
        let open = crate::config::Api { listen: ([0, 0, 0, 0], 5101).into(), ..api };
        assert_eq!(status("/api/v0/cat", &[local], &open), Some(StatusCode::UNAUTHORIZED));
    }
}
