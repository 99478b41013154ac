//! One plain question to the door on this machine, over TLS where it speaks that.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
};

use crate::http::Certificate;

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 256 * 1024;

/// An answer's head.
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
}

impl Reply {
    /// A header's value; names are compared as HTTP does.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1);
        let mut fields = fields.filter_map(|line| line.split_once(':'));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    fn read(answer: &[u8]) -> Option<Self> {
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = String::from_utf8(answer.get(..end)?.to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head })
    }
}

/// Asks, and says what went wrong in words for an operator.
pub(super) async fn ask(
    at: SocketAddr,
    certificate: Option<Certificate>,
    question: (&str, &str, &str),
) -> Result<Reply, String> {
    let stream = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
    let Some(certificate) = certificate else {
        return exchange(stream, at, question).await;
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let only = Arc::new(Only {
        leaf: certificate.leaf().clone(),
        provider: Arc::clone(&provider),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(only)
        .with_no_client_auth();
    let name = ServerName::from(at.ip());
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let stream = connected.map_err(|error| {
        let text = error.to_string();
        match text.contains("ApplicationVerificationFailure") {
            true => "it shows another certificate than http.tls_certificate holds: it is read at the start".to_owned(),
            false => format!("no TLS: {text}"),
        }
    })?;
    exchange(stream, at, question).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    at: SocketAddr,
    (method, path, body): (&str, &str, &str),
) -> Result<Reply, String> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nhost: {at}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let text = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    stream.flush().await.map_err(text)?;
    let mut answer = Vec::new();
    // An end without TLS's own goodbye is one too: what came is looked at.
    let read = stream.take(MAX_ANSWER).read_to_end(&mut answer).await;
    Reply::read(&answer).ok_or_else(|| match read {
        Ok(_) => "what answers there does not speak HTTP".to_owned(),
        Err(error) => error.to_string(),
    })
}

/// Believes one certificate, whoever issued it: whether others do is not asked here.
#[derive(Debug)]
struct Only {
    leaf: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.leaf {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}
