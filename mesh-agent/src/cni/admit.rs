//! What is done for one request of the plugin: a new pod is captured, and has its certificate, before the answer says that it may go on. Called by
//! [`super::server`].
//!
//! ```text
//!  begin (is it wanted? the book waits for our end) ─> cgroup ─> check ─> Add ─> certificate ─> answer ─> Delivered
//!                                                       └── whatever fails: the session closes, and what was made is undone
//! ```

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesh_client::CertificateManager;
use mesh_core::{Identity, TrustDomain};
use mesh_proto::convert::{CniAnswer, CniCommand, CniRequest, PodDnsRequest};
use nix::sys::stat::fstat;
use tokio::time::{Instant, timeout, timeout_at};

use crate::enrol::ManagerHandle;
use crate::enrol::check::Checker;
use crate::enrol::kube::{Begun, Called, Facts, Finder, KubeHandle, NotBegun, Reason, Trouble, Verdict, resolv_conf};
use crate::enrol::machine::{Event, RequestId, SessionId, Spec};
use crate::enrol::server::PodFds;
use crate::enrol::session::{Code, Failure};

/// How often what nobody tells the end of is looked at again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long the end of a pod's network waits for us.
const FAREWELL: Duration = Duration::from_millis(1500);

/// What requests need.
pub struct Means {
    /// Which pods are wanted.
    pub kube: KubeHandle,
    /// Where pods are.
    pub finder: Finder,
    /// The same checks as for clients of the enrolment socket.
    pub checker: Arc<Checker>,
    /// The pods.
    pub manager: ManagerHandle<PodFds>,
    /// Their certificates.
    pub certificates: CertificateManager,
    /// Of identities.
    pub trust_domain: TrustDomain,
}

/// A pod that was captured and counts once the plugin has heard of it.
pub struct Admitted {
    begun: Begun,
    request: RequestId,
}

impl Means {
    /// Answers a request.
    pub async fn answer(
        &self,
        session: SessionId,
        request: &CniRequest,
        netns: Option<OwnedFd>,
    ) -> (CniAnswer, Option<Admitted>) {
        let deadline = Instant::now() + request.patience;
        match (request.command, netns) {
            (CniCommand::Add, Some(netns)) => match self.add(session, request, netns, deadline).await {
                Ok(admitted) => (CniAnswer::Ready, Some(admitted)),
                Err(answer) => (answer, None),
            },
            (CniCommand::Check, Some(netns)) => (self.check(request, &netns).await, None),
            (CniCommand::Del, netns) => {
                if let Some(netns) = netns {
                    self.del(request, &netns).await;
                }
                (CniAnswer::Ready, None)
            }
            (_, None) => (CniAnswer::Unknown("the request came without a network namespace".to_owned()), None),
        }
    }

    /// The plugin has heard that the pod is admitted, or has not.
    pub async fn end(&self, admitted: Admitted, heard: bool) {
        if heard {
            self.manager.tell(Event::Delivered { request: admitted.request }).await;
            admitted.begun.end(Ok(()));
        } else {
            let message = "the CNI plugin was gone before it heard that the pod is enrolled".to_owned();
            admitted.begun.end(Err(Trouble { message, held: false, lasting: false }));
        }
    }

    async fn add(
        &self,
        session: SessionId,
        request: &CniRequest,
        netns: OwnedFd,
        deadline: Instant,
    ) -> Result<Admitted, CniAnswer> {
        let begun = self.begin(request, deadline).await?;
        match self.capture(session, request, &begun.facts, netns, deadline).await {
            Ok(request) => Ok(Admitted { begun, request }),
            Err(failure) => {
                let uid = begun.facts.uid.clone();
                let Failure { message, retry, .. } = failure;
                // What the plugin never hears of is undone; an earlier network of the pod is still there.
                self.manager.tell(Event::Closed { session }).await;
                let asked = self.manager.fresh_id();
                let kept = self.manager.ask(asked, Event::Keep { request: asked, uid }).await.await;
                let held = matches!(kept, Ok(Ok(())));
                begun.end(Err(Trouble { message: message.clone(), held, lasting: !retry }));
                Err(if retry { CniAnswer::Wait(message) } else { CniAnswer::Refused(message) })
            }
        }
    }

    /// Waits until it is known whether the pod is wanted.
    async fn begin(&self, request: &CniRequest, deadline: Instant) -> Result<Begun, CniAnswer> {
        let mut knowledge = self.kube.knowledge();
        loop {
            knowledge.borrow_and_update();
            let late = match self.kube.begin(called(request)).await {
                Ok(begun) => return Ok(begun),
                Err(NotBegun::Other(facts)) => {
                    let Facts { namespace, name, .. } = &*facts;
                    let message = format!("the pod {} is {namespace}/{name} for the API server", request.uid);
                    return Err(CniAnswer::Refused(message));
                }
                Err(NotBegun::Left(reason)) => return Err(CniAnswer::Pass(reason.to_string())),
                Err(NotBegun::Busy) => {
                    tokio::time::sleep(AGAIN).await;
                    Instant::now() >= deadline
                }
                // An enroller that has not begun says nothing of its beginning.
                Err(NotBegun::Unheard) => {
                    let _ = timeout(AGAIN, knowledge.changed()).await;
                    if Instant::now() >= deadline {
                        let why = "the API server has not told the agent of the pod";
                        return Err(CniAnswer::Unknown(why.to_owned()));
                    }
                    false
                }
            };
            if late {
                return Err(CniAnswer::Wait("another step of the pod's enrolment is under way".to_owned()));
            }
        }
    }

    async fn capture(
        &self,
        session: SessionId,
        asked: &CniRequest,
        facts: &Facts,
        netns: OwnedFd,
        deadline: Instant,
    ) -> Result<RequestId, Failure> {
        let identity = Identity::new(self.trust_domain.clone(), &facts.namespace, &facts.service_account)
            .map_err(|error| Failure::lasting(Code::Refused, error.to_string()))?;
        let cgroup = self.cgroup(&asked.uid, deadline).await?;
        let dns = match &asked.dns {
            Some(dns) => resolv_conf(&dns.resolv_conf()),
            None => PodDnsRequest { ndots: 1, ..PodDnsRequest::default() },
        };
        let here = Facts { ips: asked.ips.clone(), ..facts.clone() };
        let pod = self.finder.request(&here, dns)?;
        let checker = self.checker.clone();
        let checked = move || {
            let id = checker.check(&pod, netns.as_fd(), cgroup.as_fd())?;
            Ok((Spec { pod, netns: id }, PodFds { netns, adopted: None, taken_over: false }))
        };
        let broke_off = |_| Err(Failure::passing(Code::Failed, "looking at the pod panicked"));
        let (spec, payload) = tokio::task::spawn_blocking(checked).await.unwrap_or_else(broke_off)?;
        let request = self.manager.fresh_id();
        let answer = self.manager.ask(request, Event::Add { session, request, spec, payload }).await;
        let late = |what: &str| Failure::passing(Code::Failed, what.to_owned());
        timeout_at(deadline, answer)
            .await
            .map_err(|_| late("the pod is still being captured"))?
            .map_err(|_| Failure::passing(Code::Stopping, "the agent is stopping"))??;
        if timeout_at(deadline, self.certificates.certificate(&identity)).await.is_err() {
            let why = self.certificates.last_error(&identity).unwrap_or_else(|| "no answer yet".to_owned());
            return Err(late(&format!("there is no certificate for {identity} yet: {why}")));
        }
        Ok(request)
    }

    /// The pod's cgroup, which the kubelet makes before it asks for a network.
    async fn cgroup(&self, uid: &str, deadline: Instant) -> Result<OwnedFd, Failure> {
        loop {
            let (finder, uid) = (self.finder.clone(), uid.to_owned());
            let find = move || finder.folder(&uid).and_then(|folder| File::open(folder).ok());
            if let Ok(Some(folder)) = tokio::task::spawn_blocking(find).await {
                return Ok(folder.into());
            }
            if Instant::now() >= deadline {
                let message = format!("there is no cgroup of the pod below {:?}", self.finder.pods_cgroup);
                return Err(Failure::passing(Code::Failed, message));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn check(&self, request: &CniRequest, netns: &OwnedFd) -> CniAnswer {
        let knowledge = self.kube.knowledge().borrow().clone();
        match knowledge.pod(&called(request)) {
            None => CniAnswer::Unknown("the API server has not told the agent of the pod".to_owned()),
            Some((_, Verdict::Leave(reason))) => CniAnswer::Pass(Reason::to_string(reason)),
            Some((pod, Verdict::Enrol)) => match self.is_in(&pod.uid, netns).await {
                true => CniAnswer::Ready,
                false => CniAnswer::Wait("the pod's network is not captured".to_owned()),
            },
        }
    }

    /// Lets go of the pod's network, and of no later one: its addresses are given to others now.
    async fn del(&self, request: &CniRequest, netns: &OwnedFd) {
        let knowledge = self.kube.knowledge().borrow().clone();
        let known = knowledge.pod(&called(request));
        // One that the API server has forgotten is only in the mesh's own list, where a pod of the kubelet's folder has another UID.
        let uid = known.map_or_else(|| request.uid.clone(), |(pod, _)| pod.uid.clone());
        if !self.is_in(&uid, netns).await {
            return;
        }
        let asked = self.manager.fresh_id();
        let answer = self.manager.ask(asked, Event::Del { request: asked, uid }).await;
        let _ = timeout(FAREWELL, answer).await;
    }

    /// Whether the pod is captured in this very network namespace.
    async fn is_in(&self, uid: &str, netns: &OwnedFd) -> bool {
        let Ok(inode) = fstat(netns).map(|stat| stat.st_ino) else { return false };
        self.manager.pods().await.iter().any(|pod| *pod.uid == *uid && pod.netns_inode == inode)
    }
}

fn called(request: &CniRequest) -> Called {
    let CniRequest { uid, namespace, name, .. } = request;
    Called { cgroup_uid: uid.clone(), namespace: namespace.clone(), name: name.clone() }
}
