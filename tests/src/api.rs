//! A daemon's HTTP side, as a program on the same machine sees it: requests with any headers, answers as they come.

use std::collections::BTreeMap;

use futures::StreamExt;
use reqwest::Method;
use serde_json::Value;

use crate::node::Node;

/// One listener of a daemon: its API or its gateway.
pub struct Api {
    base: String,
    token: String,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Api {
    /// The API of a running daemon.
    pub fn of(node: &Node) -> Api {
        Self::at(node, "api")
    }

    /// The gateway of a running daemon.
    pub fn gateway(node: &Node) -> Api {
        Self::at(node, "gateway")
    }

    fn at(node: &Node, listener: &str) -> Api {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Redirects are answers to look at.
        let client =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        Api {
            base: node.ready()[listener].as_str().expect("the listener is on").to_owned(),
            token: std::fs::read_to_string(node.repo().join("api-token"))
                .expect("the token")
                .trim()
                .to_owned(),
            runtime: runtime.expect("a runtime"),
            client: client.expect("a client"),
        }
    }

    /// Sends a request with exactly these headers besides what HTTP itself needs.
    pub fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.finish(request)
    }

    /// GET.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, path, headers, Vec::new())
    }

    /// POST without body or token.
    pub fn post(&self, path: &str) -> Answer {
        self.send(Method::POST, path, &[], Vec::new())
    }

    /// A call of `/api/v1` with the token; its answer whatever the status.
    pub fn call(&self, path: &str, request: &Value) -> Answer {
        self.call_with(path, request, &[])
    }

    /// The same with more headers.
    pub fn call_with(&self, path: &str, request: &Value, headers: &[(&str, &str)]) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend_from_slice(headers);
        self.send(Method::POST, &format!("/api/v1/{path}"), &all, request.to_string().into_bytes())
    }

    /// A call of `/api/v1` with the token whose answer is long: counts its bytes as they come.
    pub fn drain(&self, path: &str) -> u64 {
        let request = self.client.post(format!("{}/api/v1/{path}", self.base)).bearer_auth(&self.token);
        self.runtime.block_on(async {
            let response = request.send().await.expect("the daemon answers");
            assert!(response.status().is_success(), "{path}: {}", response.status());
            let mut pieces = response.bytes_stream();
            let mut bytes = 0;
            while let Some(piece) = pieces.next().await {
                bytes += piece.expect("the answer comes whole").len() as u64;
            }
            bytes
        })
    }

    /// A multipart POST of files given as `(name, content)`.
    pub fn upload(&self, path: &str, files: Vec<(&str, Vec<u8>)>) -> Answer {
        let form = files.into_iter().fold(reqwest::multipart::Form::new(), |form, (name, content)| {
            form.part("file", reqwest::multipart::Part::bytes(content).file_name(name.to_owned()))
        });
        self.finish(self.client.post(format!("{}{path}", self.base)).multipart(form))
    }

    fn finish(&self, request: reqwest::RequestBuilder) -> Answer {
        self.runtime.block_on(async {
            let response = request.send().await.expect("the daemon answers");
            let status = response.status().as_u16();
            let headers = response
                .headers()
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect();
            let body = response.bytes().await.expect("the answer comes whole").to_vec();
            Answer { status, headers, body }
        })
    }
}
