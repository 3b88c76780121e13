//! A tenant that becomes what a file says: idempotent, in as few transactions as possible, and
//! never over newer changes.

use super::*;
use crate::registry::{Action, Desired, ObjectKind, Outcome};

const PERMIT: &str = "@id(\"p\") permit (principal, action, resource == Seks::Service::\"api\");";

fn agent(name: &str, group: &str) -> Agent {
    let attributes = BTreeMap::from([("group".to_owned(), group.to_owned())]);
    Agent { name: name.into(), attributes, ..Agent::default() }
}

fn desired() -> Desired {
    Desired {
        services: vec![service("api"), service("other")],
        agents: vec![agent("bot", "ops"), agent("new", "ops")],
        policies: vec![("p.cedar".into(), PERMIT.into())],
        ..Desired::default()
    }
}

impl Fixture {
    async fn desire(&self, desired: &Desired) -> Result<Outcome, RegistryError> {
        self.registry.apply_desired(&self.tenant, desired, &PolicyRun::Here).await
    }
}

fn summary(outcome: &Outcome) -> Vec<String> {
    let line = |change: &crate::registry::ObjectChange| {
        format!("{} {} {}", change.action.verb(), change.kind.noun(), change.name)
    };
    outcome.changes.iter().map(line).collect()
}

#[tokio::test]
async fn what_differs_is_written_in_one_revision_and_a_repetition_writes_nothing() {
    let f = Fixture::furnished().await;
    let before = f.registry.store().revision().await.unwrap();
    let dry = f.desire(&Desired { is_dry_run: true, ..desired() }).await.unwrap();
    assert_eq!(f.registry.store().revision().await.unwrap(), before, "a dry run writes nothing");
    let done = f.desire(&desired()).await.unwrap();
    let want = ["create service other", "update agent bot", "create agent new", "create policy p"];
    assert_eq!((summary(&dry), summary(&done)), (want.map(str::to_owned).to_vec(), want.map(str::to_owned).to_vec()));
    assert_eq!((done.revision, f.registry.store().revision().await.unwrap()), (before + 1, before + 1));
    let again = f.desire(&desired()).await.unwrap();
    assert!(again.changes.is_empty(), "{again:?}");
    assert_eq!(f.registry.store().revision().await.unwrap(), before + 1);
    assert_eq!(f.registry.policies(&f.tenant).await.unwrap().len(), 2, "granted-services stays");
}

#[tokio::test]
async fn an_object_that_was_changed_after_the_files_revision_is_a_conflict() {
    let f = Fixture::furnished().await;
    let exported = f.registry.store().revision().await.unwrap();
    let change = super::super::AttributeChange { set: BTreeMap::from([("a".into(), "b".into())]), remove: Vec::new() };
    f.registry.update_agent(&f.tenant, &name("bot"), change).await.unwrap();
    let before = f.registry.store().revision().await.unwrap();
    let old = Desired { revision: exported, ..desired() };
    let refusal = conflict(f.desire(&old).await);
    assert!(refusal.contains("agent bot"), "{refusal}");
    assert_eq!(f.registry.store().revision().await.unwrap(), before, "nothing was written");
    let unconcerned = Desired { revision: exported, agents: vec![agent("new", "ops")], ..Desired::default() };
    f.desire(&unconcerned).await.unwrap();
    f.desire(&Desired { revision: 0, ..desired() }).await.unwrap();
}

#[tokio::test]
async fn pruning_deletes_what_is_not_named_of_the_listed_kinds() {
    let f = Fixture::furnished().await;
    f.desire(&desired()).await.unwrap();
    let fewer = Desired {
        services: vec![service("api")],
        agents: vec![agent("bot", "ops")],
        policies: vec![("p".into(), PERMIT.into())],
        prune: vec![ObjectKind::Service, ObjectKind::Agent, ObjectKind::Policy, ObjectKind::Credential],
        ..Desired::default()
    };
    let done = f.desire(&fewer).await.unwrap();
    assert!(done.changes.iter().all(|change| change.action == Action::Delete), "{done:?}");
    assert_eq!(summary(&done), ["delete agent new", "delete service other", "delete policy granted-services"]);
    assert!(done.warnings[0].contains("credentials are never pruned: `key` stays"), "{:?}", done.warnings);
    assert_eq!(f.registry.services(&f.tenant).await.unwrap().len(), 1);
    assert_eq!(f.registry.agents(&f.tenant).await.unwrap().len(), 1);
    assert_eq!(f.registry.policies(&f.tenant).await.unwrap().len(), 1);
    assert_eq!(f.registry.credentials(&f.tenant).await.unwrap().len(), 1);
    assert!(f.desire(&fewer).await.unwrap().changes.is_empty());
}

#[tokio::test]
async fn a_tenant_that_does_not_fit_into_one_transaction_is_written_in_several() {
    let f = Fixture::new().await;
    let agents: Vec<Agent> = (0..150).map(|n| agent(&format!("bot-{n}"), "ops")).collect();
    let before = f.registry.store().revision().await.unwrap();
    let many = Desired { agents, ..desired() };
    let done = f.desire(&many).await.unwrap();
    assert_eq!(done.changes.len(), 2 + 150 + 1);
    assert_eq!(done.revision, before + 3, "59 objects at once");
    assert!(f.desire(&many).await.unwrap().changes.is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_found_before_anything_is_written() {
    let f = Fixture::furnished().await;
    let before = f.registry.store().revision().await.unwrap();
    let reference =
        |name: &str, service: &str| Credential { name: name.into(), service: service.into(), ..Credential::default() };
    for (bad, expect) in [
        (Desired { policies: vec![("a.cedar".into(), "permit (".into())], ..desired() }, "a.cedar: line 1"),
        (
            Desired { policies: vec![("a".into(), PERMIT.into()), ("b".into(), PERMIT.into())], ..desired() },
            "b: @id(\"p\") is used twice",
        ),
        (Desired { agents: vec![agent("bot", "x"), agent("bot", "y")], ..desired() }, "listed twice"),
        (Desired { credentials: vec![reference("key", "nowhere")], ..desired() }, "service `nowhere`"),
        (Desired { credentials: vec![reference("key", "other")], ..desired() }, "is for service `api`"),
    ] {
        let refusal = f.desire(&bad).await.unwrap_err().to_string();
        assert!(refusal.contains(expect), "{refusal}");
        assert_eq!(f.registry.store().revision().await.unwrap(), before, "{refusal}");
    }
    let missing = Desired { credentials: vec![reference("later", "api")], ..Desired::default() };
    let warned = f.desire(&missing).await.unwrap().warnings;
    assert_eq!(warned, ["credential `later` is not stored: seks credential put later --service api"]);
}
