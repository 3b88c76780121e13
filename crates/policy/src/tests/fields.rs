//! Declared fields of bodies: refunds up to 50, whatever a request looks like.

use seks_service::request::BodyFormat;

use super::*;

const REFUNDS: &str = r#"@id("refunds") permit (principal, action == Seks::Action::"POST", resource == Seks::Service::"openai")
    when { context.path == "/v1/refunds" && context has body && context.body has amount && context.body.amount <= 50 };"#;

fn declared() -> Declarations {
    let fields = [("amount", "Long"), ("card.number", "String"), ("price", "decimal"), ("unused", "Bool")];
    Declarations { body_fields: BodyFields::parse(fields).unwrap(), ..Declarations::default() }
}

fn records(text: &str) -> Vec<wire::Policy> {
    let policies = parse_file_with(text, &declared()).unwrap_or_else(|e| panic!("{e:?}"));
    let record = |p: ParsedPolicy| wire::Policy { id: p.id.to_string(), text: p.text, ..wire::Policy::default() };
    policies.into_iter().map(record).collect()
}

fn fixture(text: &str) -> Fixture {
    Fixture { policies: Policies::compile(&records(text)).unwrap(), ..Fixture::new("") }
}

/// The decision, with the body read as a node reads it.
fn decide(f: &Fixture, target: &str, format: BodyFormat, body: &str) -> Decision {
    let slice = f.slice();
    let call = f.call(&Method::POST, target);
    let facts = BodyFacts::read(format, body.as_bytes(), slice.body_fields().unwrap());
    let body = match (slice.needs_body(&call), &facts) {
        (false, _) => Body::NotRead,
        (true, _) if body.is_empty() => Body::Absent,
        (true, None) => Body::Opaque,
        (true, Some(facts)) => Body::Inspected(facts),
    };
    slice.decide(&Call { body, ..call })
}

#[test]
fn a_policy_keeps_the_fields_that_it_uses() {
    let text = format!(
        "{REFUNDS}\n@id(\"cards\") permit (principal, action, resource) when {{ context has body.card && \
         context.body.card has number && context.body.card.number like \"4*\" }};"
    );
    let records = records(&text);
    assert!(records[0].text.starts_with("@body_fields(\"amount: Long\")\n@id(\"refunds\")"), "{}", records[0].text);
    assert!(records[1].text.starts_with("@body_fields(\"card.number: String\")\n"), "{}", records[1].text);
    let again = parse_file(&records[0].text).unwrap();
    assert_eq!(again[0].1, records[0].text, "the text says all that is needed");
    let more = REFUNDS.replacen("@id", "@body_fields(\"amount: Long, z: Bool\") @id", 1);
    assert!(parse_file(&more).unwrap()[0].1.starts_with("@body_fields(\"amount: Long\") @id"), "no more than is used");
    let none = "@id(\"x\") @body_fields ( \"z: Bool\" )\npermit (principal, action, resource);";
    assert_eq!(parse_file(none).unwrap()[0].1, "@id(\"x\") \npermit (principal, action, resource);");
    let warned = warnings(REFUNDS, &Declarations::default());
    assert!(warned.iter().any(|w| w.reason.contains("impossible")), "undeclared: it never applies: {warned:?}");
    let typed = REFUNDS.replacen("@id", "@body_fields(\"amount: String\") @id", 1);
    assert!(parse_file_with(&typed, &declared()).unwrap_err()[0].reason.contains("as Long and as String"));
    let typo = REFUNDS.replace("amount <= 50", "amount == \"50\"");
    assert!(parse_file_with(&typo, &declared()).is_err(), "the type is checked");
}

#[test]
fn refunds_up_to_50_are_permitted_in_json_and_in_forms() {
    let f = fixture(REFUNDS);
    for (target, format, body, allowed) in [
        ("/v1/refunds", BodyFormat::Json, r#"{"amount":50}"#, true),
        ("/v1/refunds", BodyFormat::Form, "charge=ch_1&amount=50", true),
        ("/v1/refunds?expand[]=charge", BodyFormat::Form, "amount=50", true),
        ("/v1/refunds", BodyFormat::Json, r#"{"amount":51}"#, false),
        ("/v1/refunds", BodyFormat::Form, "amount=51", false),
        ("/v1/refunds", BodyFormat::Json, r#"{"reason":"x"}"#, false),
        ("/v1/refunds", BodyFormat::Json, r#"{"amount":"5"}"#, false),
        ("/v1/refunds", BodyFormat::Json, r#"{"amount":5,"Amount":500}"#, false),
        ("/v1/refunds", BodyFormat::Form, "amount=5&amount=500", false),
        ("/v1/refunds", BodyFormat::Form, "amount=5&amount[]=500", false),
        ("/v1/refunds?amount=500", BodyFormat::Form, "amount=5", false),
        ("/v1/refunds?%61mount=500", BodyFormat::Json, r#"{"amount":5}"#, false),
        ("/v1/refunds?Amount[x]=500", BodyFormat::Json, r#"{"amount":5}"#, false),
        ("/v1/refunds", BodyFormat::Form, "", false),
        ("/v1/other", BodyFormat::Json, r#"{"amount":5}"#, false),
    ] {
        assert_eq!(decide(&f, target, format, body).allowed, allowed, "{target} {body}");
    }
}

#[test]
fn a_forbid_of_large_amounts_can_not_be_passed_by_in_the_query() {
    let forbid = r#"@id("large") forbid (principal, action, resource)
        when { context has body && context.body has amount && context.body.amount > 50 };"#;
    let f = fixture(&format!("{GRANTED_SERVICES}\n{forbid}"));
    assert!(decide(&f, "/v1/x", BodyFormat::Form, "amount=5").allowed);
    assert!(decide(&f, "/v1/x?limit=3", BodyFormat::Form, "").allowed);
    for (target, body) in [("/v1/x", "amount=500"), ("/v1/x?amount=500", ""), ("/v1/x?amount=500", "amount=5")] {
        let denied = decide(&f, target, BodyFormat::Form, body);
        assert!(!denied.allowed && ids(&denied) == ["large"], "{target} {body}: {denied:?}");
    }
}

#[test]
fn facts_that_were_read_for_other_fields_are_not_enough() {
    let f = fixture(REFUNDS);
    let call = f.call(&Method::POST, "/v1/refunds");
    let older = BodyFacts::from_json(br#"{"amount":5}"#).unwrap();
    assert!(!f.slice().decide(&Call { body: Body::Inspected(&older), ..call }).allowed);
}

#[test]
fn policies_that_disagree_about_a_type_permit_no_body() {
    let mut policies = records(REFUNDS);
    let text = r#"@body_fields("amount: String") @id("text") permit (principal, action, resource) when { context has body && context.body has amount && context.body.amount == "x" };"#;
    policies.push(wire::Policy { id: "text".into(), text: text.into(), ..wire::Policy::default() });
    let f = Fixture { policies: Policies::compile(&policies).unwrap(), ..Fixture::new("") };
    assert!(f.slice().body_fields().is_none());
    let call = f.call(&Method::POST, "/v1/refunds");
    let facts = BodyFacts::from_json(br#"{"amount":5}"#).unwrap();
    assert!(!f.slice().decide(&Call { body: Body::Inspected(&facts), ..call }).allowed);
}

#[test]
fn decimals_and_nested_fields_are_compared() {
    let f = fixture(
        r#"@id("p") permit (principal, action, resource) when { context has body && context.body has price
            && context.body.price.lessThanOrEqual(decimal("50.00")) && context.body has card.number && context.body.card.number like "4*" };"#,
    );
    for (body, allowed) in [
        (r#"{"price":"49.99","card":{"number":"42"}}"#, true),
        (r#"{"price":49.99,"card":{"number":"42"}}"#, true),
        (r#"{"price":50.01,"card":{"number":"42"}}"#, false),
        (r#"{"price":1,"card":{"number":"5"}}"#, false),
        (r#"{"price":1,"card":{}}"#, false),
    ] {
        assert_eq!(decide(&f, "/x", BodyFormat::Json, body).allowed, allowed, "{body}");
    }
    assert!(decide(&f, "/x", BodyFormat::Form, "price=50&card[number]=4").allowed);
}
