//! A running service from the command line: where it is, with which key, and one request at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::core::text::line::Line;
use crate::gpu::http::dial::dial;
use crate::gpu::http::whole;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where Debian and its kin keep the CAs that they trust.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The type of a body, unless another is said.
const JSON: &str = "application/json";

/// Where the service is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Remote {
    /// The service.
    #[arg(long, default_value = "http://127.0.0.1:7700", env = "ORCHESTRATORD_URL")]
    pub(crate) url: String,
    /// The API key, where the service wants one.
    #[arg(long, env = "ORCHESTRATORD_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// The CA that vouches for the service, in PEM format; the system's own when left out.
    #[arg(long)]
    pub(crate) ca: Option<PathBuf>,
}

impl Remote {
    /// Sends one request on a connection of its own. A body is JSON unless the headers say otherwise.
    ///
    /// # Errors
    /// One line: nobody is there, or the connection broke.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, String> {
        let base = self.url.trim_end_matches('/');
        let fault = |error: String| format!("{base}: {error}; is orchestratord running there?");
        let uri: Uri = base.parse().map_err(|_| format!("--url: {base:?} is not of the form http://host:port"))?;
        let host = uri.host().ok_or_else(|| format!("--url: {base:?} names no host"))?.to_owned();
        no_lost_parts(&uri, base)?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("--url: {base:?} must begin with http:// or https://")),
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = dial(host.trim_matches(['[', ']']), port, CONNECT_TIMEOUT).await.map_err(fault)?;
        let _ = stream.set_nodelay(true); // It only makes waits shorter.
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", uri.path().trim_end_matches('/')))
            .header(header::HOST, format!("{host}:{port}"));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            request = request.header(header::CONTENT_TYPE, JSON);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        if !is_tls {
            return exchange(stream, request).await.map_err(fault);
        }
        let name = ServerName::try_from(host.clone()).map_err(|error| format!("--url: {host}: {error}"))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.tls()?));
        let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await;
        let stream =
            stream.map_err(|_| fault("no handshake in time".into()))?.map_err(|error| fault(error.to_string()))?;
        exchange(stream, request).await.map_err(fault)
    }

    fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let path = self.ca.clone().unwrap_or_else(|| SYSTEM_CAS.into());
        let fault = |error: String| format!("--ca: {}: {error}", path.display());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| fault(error.to_string()))? {
            roots
                .add(certificate.map_err(|error| fault(error.to_string()))?)
                .map_err(|error| fault(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Ok(builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
    }

    /// Asks for JSON, with JSON.
    ///
    /// # Errors
    /// One line: what went wrong, or the envelope of the refusal.
    pub(crate) async fn json(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, String> {
        self.json_for(method, path, JSON, body).await
    }

    /// Asks for JSON, with a body of this type.
    ///
    /// # Errors
    /// One line: what went wrong, or the envelope of the refusal.
    pub(crate) async fn json_for(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value, String> {
        let announced = [("content-type", content_type)];
        let headers: &[(&str, &str)] = if body.is_empty() { &[] } else { &announced };
        let answer = self.send(method, path, headers, body).await?;
        let (status, body) = (answer.status(), answer);
        if !status.is_success() {
            return Err(refusal(body).await);
        }
        let text = whole(body).await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&text).map_err(|error| format!("{}: the answer is not JSON: {error}", self.url))
    }
}

/// A URL of the service may have a path, below which a proxy keeps it, and nothing more: what else it has would be left
/// out.
fn no_lost_parts(uri: &Uri, base: &str) -> Result<(), String> {
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("--url: it has a user or a password in it; the service wants a key: give --key".into());
    }
    if uri.query().is_some() || base.contains('#') {
        return Err(format!("--url: {base:?} has a query or a fragment, which no request could keep; leave it out"));
    }
    Ok(())
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // It moves the bytes; it ends with the answer's last one, or with the process.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// The envelope of a refusal as a line.
pub(crate) async fn refusal(answer: Response<Incoming>) -> String {
    use crate::gpu::http::HttpError;
    match whole(answer).await {
        Err(HttpError::Status { status, body, .. }) => {
            let envelope: Value = serde_json::from_str(&body).unwrap_or_default();
            match (envelope["code"].as_str(), envelope["message"].as_str()) {
                (Some(code), Some(message)) => {
                    let again = envelope["retry_after_ms"].as_u64();
                    let again = again.map_or(String::new(), |ms| format!("; come back in {ms} ms"));
                    format!("refused: {}: {}{again}", Line::<64>::new(code), Line::<2000>::new(message))
                }
                _ => format!("refused with status {status}: {body}"),
            }
        }
        Err(error) => error.to_string(),
        Ok(_) => "refused without a reason".into(),
    }
}
