//! Pages of others in a real browser on the same host: they change nothing and read nothing. And the service's own page
//! behind a proxy that puts a path in front.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{Builder, JoinHandle};

use super::{Browser, READY, metric, service};
use crate::support::exchange;

/// A server of this test's own; each connection has a thread.
struct Server {
    port: u16,
    is_over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_over, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let over = is_over.clone();
        let accept = move || {
            for stream in listener.incoming().map_while(Result::ok).take_while(|_| !over.load(SeqCst)) {
                let serve = serve.clone();
                Builder::new().spawn(move || (*serve)(stream)).unwrap();
            }
        };
        Server { port, is_over, accepting: Some(Builder::new().spawn(accept).unwrap()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // It looks whether it is over.
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// The head of a request, and what has come of its body.
fn head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = text.windows(4).position(|end| end == b"\r\n\r\n") {
            let rest = text.split_off(end + 4);
            return (String::from_utf8_lossy(&text).into_owned(), rest);
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => text.extend_from_slice(&piece[..count]),
            _ => return (String::new(), Vec::new()),
        }
    }
}

/// A page of somebody else.
fn somebodys_page(mut stream: TcpStream) {
    let _ = head(&mut stream);
    let page = "<!doctype html><title>x</title><body>x</body>";
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: ";
    let _ = stream.write_all(format!("{answer}{}\r\n\r\n{page}", page.len()).as_bytes()); // It has gone.
}

/// Hands a request on without the path in front of it.
fn hand_on(mut stream: TcpStream, to: u16) {
    let (head, mut body) = head(&mut stream);
    let Some((first, headers)) = head.split_once("\r\n") else { return };
    let headers = headers.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let first = first.replacen(" /llm/", " /", 1);
    let head = format!("{first}\r\nconnection: close\r\n{}", headers.collect::<Vec<_>>().join("\r\n"));
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let missing = length.unwrap_or(0_usize).saturating_sub(body.len());
    let mut rest = vec![0; missing];
    let Ok(mut service) = TcpStream::connect(("127.0.0.1", to)) else { return };
    if stream.read_exact(&mut rest).is_err() {
        return;
    }
    body.append(&mut rest);
    let _ = service.write_all(&[head.as_bytes(), &body].concat()); // Then there is nothing to copy.
    let _ = std::io::copy(&mut service, &mut stream); // Until one of them is gone.
}

/// Everything that a page may try; each attempt says what became of it, and `read` what it could read.
const ATTEMPTS: &str = r#"
return (async () => {
  const base = 'http://127.0.0.1:PORT', seen = {};
  const later = (ms) => new Promise((done) => setTimeout(() => done('nothing came'), ms));
  const attempt = async (name, work) => {
    try { seen[name] = await Promise.race([work(), later(3000)]); } catch (error) { seen[name] = 'failed: ' + error.name; }
  };
  const fetched = (path, options) => async () => {
    const answer = await fetch(base + path, options);
    const text = await answer.text();
    return text === '' ? answer.type : 'read: ' + text;
  };
  const textOf = (node) => {
    let text = null;
    try { text = node.contentDocument?.body?.innerText; } catch { text = null; }
    return text ? 'read: ' + text : 'loaded';
  };
  const loaded = (tag, attributes) => () => new Promise((done) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.onerror = () => done('failed to load');
    node.onload = () => done(textOf(node));
    document.body.append(node);
  });
  const task = '{"prompt":"x","model_ref":"m","max_tokens":1}';
  const text = { 'content-type': 'text/plain' };
  await attempt('text to tasks', fetched('/v1/tasks', { method: 'POST', mode: 'no-cors', headers: text, body: task }));
  await attempt('no type to tasks', fetched('/v1/tasks', { method: 'POST', mode: 'no-cors', body: new Blob([task]) }));
  await attempt('JSON to tasks', fetched('/v1/tasks',
    { method: 'POST', headers: { 'content-type': 'application/json' }, body: task }));
  await attempt('drain', fetched('/v1/pools/chat/drain', { method: 'POST', mode: 'no-cors' }));
  await attempt('configuration', fetched('/v1/config', { method: 'POST', mode: 'no-cors', headers: text,
    body: 'pools: [{id: chat, engine: sim, model: other}]' }));
  await attempt('rollback', fetched('/v1/config/rollback', { method: 'POST', mode: 'no-cors' }));
  for (const path of ['/v1/pools', '/v1/config', '/v1/overview', '/metrics', '/healthz', '/readyz', '/dashboard']) {
    await attempt('read ' + path, fetched(path, {}));
    await attempt('look at ' + path, fetched(path, { mode: 'no-cors' }));
  }
  await attempt('image', loaded('img', { src: base + '/dashboard/icon.svg' }));
  await attempt('script', loaded('script', { src: base + '/dashboard/base.js', type: 'module' }));
  await attempt('frame', loaded('iframe', { src: base + '/dashboard' }));
  await attempt('events', () => new Promise((done) => {
    const source = new EventSource(base + '/v1/events');
    source.onerror = () => { source.close(); done('failed'); };
    source.addEventListener('overview', (event) => done('read: ' + event.data));
  }));
  await attempt('beacon', async () => {
    navigator.sendBeacon(base + '/v1/pools/chat/drain', new Blob(['{}'], { type: 'text/plain' }));
    return 'sent';
  });
  for (const kind of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
    await attempt('form of ' + kind, () => new Promise((done) => {
      const frame = Object.assign(document.createElement('iframe'), { name: 'frame' + Math.random() });
      const form = Object.assign(document.createElement('form'),
        { action: base + '/v1/pools/chat/drain', method: 'POST', enctype: kind, target: frame.name });
      document.body.append(frame, form);
      frame.onload = () => done(textOf(frame));
      form.submit();
    }));
  }
  return seen;
})();
"#;

#[test]
fn pages_of_others_change_nothing_and_read_nothing() {
    let Some(browser) = Browser::start_with(&["--host-resolver-rules=MAP evil.test 127.0.0.1"]) else { return };
    let service = service("foreign-pages.yaml");
    let somebody = Server::start(somebodys_page);
    let attempts = ATTEMPTS.replace("PORT", &service.port.to_string());
    let pages = [
        format!("http://127.0.0.1:{}/", somebody.port),
        format!("http://evil.test:{}/", somebody.port),
        "data:text/html,<body>x</body>".to_owned(),
    ];
    for page in pages {
        browser.open(&page);
        let seen = browser.run(&attempts);
        let seen = seen.as_object().unwrap_or_else(|| panic!("{page}: {seen}"));
        assert!(seen.len() >= 25, "{page}: {seen:?}");
        for (name, what) in seen {
            println!("{page}: {name}: {what}");
            assert!(!what.as_str().unwrap().starts_with("read: "), "{page}: {name}: {what}");
        }
    }
    // A name that leads to the service itself: to the browser it is the page's own.
    browser.open(&format!("http://evil.test:{}/dashboard", service.port));
    let text = browser.run("return document.body.innerText");
    assert!(text.as_str().is_some_and(|text| text.contains("http.hosts")), "{text}");
    for (path, method) in [("/v1/pools", "GET"), ("/v1/config", "GET"), ("/v1/pools/chat/drain", "POST")] {
        let script = format!("return fetch('{path}', {{ method: '{method}' }}).then((answer) => answer.status)");
        assert_eq!(browser.run(&script), 421, "{method} {path}");
    }
    // Nothing has come of it all.
    assert_eq!(exchange(service.port, "GET", "/v1/pools/chat/health", &[], b"").0, 200);
    assert_eq!(metric(&service, "config_generation", &[]), 1.0);
    assert_eq!(metric(&service, "tasks_enqueued_total", &["pool_id=\"chat\"", "priority=\"interactive\""]), 0.0);
    for reason in ["origin", "unknown_host"] {
        let reason = format!("reason=\"{reason}\"");
        assert!(metric(&service, "http_requests_refused_total", &[&reason]) > 0.0, "{reason}");
    }
}

#[test]
fn the_page_works_below_the_path_of_a_proxy() {
    let Some(browser) = Browser::start() else { return };
    let service = service("below-a-path.yaml");
    let to = service.port;
    let proxy = Server::start(move |stream| hand_on(stream, to));
    browser.open(&format!("http://127.0.0.1:{}/llm/", proxy.port));
    browser.until(READY, |pools| *pools == 2);
    assert_eq!(browser.run("return location.pathname"), "/llm/dashboard");
    browser.run(
        "document.querySelector('#prompt').value = 'The sky is'; \
         const model = document.querySelector('#prompt-model'); if (model) model.value = 'm'; \
         document.querySelector('#prompt-max-tokens').value = '8'; document.querySelector('#prompt-submit').click();",
    );
    browser.until("return document.querySelector('#prompt-output').dataset.state", |state| *state == "length");
    let complaints = browser.complaints();
    let complaint = complaints.iter().find(|line| !line.contains("the server responded with a status of"));
    assert_eq!(complaint, None);
}
