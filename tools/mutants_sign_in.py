"""The controls of signing in (F-3), and the attacks on them."""

from tools.mutant import THREATS, Mutant

CLAIMS, KEYS = THREATS + "identity/test_id_token_claims.py", THREATS + "identity/test_id_token_keys.py"
PARTIES = CLAIMS + "::test_a_token_is_from_our_provider_for_us_and_for_this_sign_in"
SIGN_IN = (
    Mutant(
        "F-3 issuer of the answer",
        "services/identity/sign_in.py",
        "        if callback.issuer != binding.issuer and (",
        "        if False and (",
        THREATS + "test_sign_in.py::test_a_changed_answer_of_the_provider_opens_no_session",
    ),
    Mutant(
        "F-3 browser of the sign-in",
        "services/identity/sign_in.py",
        'return "" if hmac.compare_digest(handle.encode(), callback.handle.encode()) else "state_foreign"',
        'return ""',
        THREATS + "identity/test_browser.py::test_a_sign_in_of_another_browser_is_refused",
    ),
    Mutant(
        "F-3 session before the sign-in",
        "services/identity/sign_in.py",
        "digest(cookie), now, pending.previous)",
        "digest(cookie), now, None)",
        THREATS + "identity/test_browser.py::test_a_sign_in_ends_the_session_that_the_browser_had",
    ),
    Mutant(
        "F-3 logout token counts once",
        "services/identity/logout.py",
        "        if await self.store.known(binding.id, jti):",
        "        jti = digest(str(now))\n        if await self.store.known(binding.id, jti):",
        THREATS + "identity/test_logout.py::test_a_logout_token_counts_once",
    ),
    Mutant(
        "F-3 signature",
        "services/identity/signed.py",
        "    if not believed:\n",
        "    if False:\n",
        KEYS + "::test_the_token_does_not_choose_how_it_is_verified",
    ),
    Mutant(
        "F-3 algorithms are pinned",
        "services/identity/signed.py",
        "    if algorithm not in algorithms:\n",
        "    if False:\n",
        KEYS + "::test_a_binding_pins_its_algorithms",
    ),
    Mutant(
        "F-3 kid",
        "services/identity/signed.py",
        '        ("kid_unknown", lambda key: "kid" not in header or key.get("kid") == header["kid"]),\n',
        "",
        KEYS + "::test_the_token_does_not_choose_how_it_is_verified",
    ),
    Mutant(
        "F-3 use of the key",
        "services/identity/signed.py",
        '        ("key_use", lambda key: key.get("use", "sig") == "sig" and _may_verify(key)),\n',
        "",
        KEYS + "::test_only_one_whole_key_of_the_provider_verifies",
    ),
    Mutant(
        "F-3 kind of the token",
        "services/identity/signed.py",
        '    ("typ", _is_of_another_kind),\n',
        "",
        CLAIMS + "::test_another_kind_of_token_is_no_id_token",
    ),
    Mutant(
        "F-3 a member stands once",
        "services/identity/signed.py",
        "    if len(members := dict(pairs)) != len(pairs):\n",
        "    members = dict(pairs)\n    if False:\n",
        KEYS + "::test_a_form_that_two_parsers_could_read_differently_is_refused",
    ),
    Mutant(
        "F-3 issuer",
        "services/identity/id_token.py",
        '    ("iss", lambda claims, want: claims["iss"] == want.issuer),\n',
        "",
        PARTIES,
    ),
    Mutant(
        "F-3 audience",
        "services/identity/id_token.py",
        '    ("aud", lambda claims, want: want.client_id in _audiences(claims)),\n',
        "",
        PARTIES,
    ),
    Mutant(
        "F-3 nonce",
        "services/identity/id_token.py",
        '    ("nonce", lambda claims, want: claims["nonce"] == want.nonce),\n',
        "",
        THREATS + "identity/test_flow.py::test_an_id_token_of_another_domains_binding_is_refused",
    ),
    Mutant(
        "F-3 expiry",
        "services/identity/id_token.py",
        '    ("exp", lambda claims, want: claims["exp"] > want.now - want.leeway_s),\n',
        "",
        CLAIMS + "::test_a_time_is_held_against_the_clock",
    ),
    Mutant(
        "F-3 leeway never widens the age",
        "services/identity/id_token.py",
        'want.now - claims["auth_time"] <= want.max_age_s),\n',
        'want.now - claims["auth_time"] <= want.max_age_s + want.leeway_s),\n',
        CLAIMS + "::test_a_time_is_held_against_the_clock",
    ),
    Mutant(
        "F-3 verifier of the code",
        "services/identity/sign_in.py",
        '            "code_verifier": self._derive("verifier", callback.state),\n',
        '            "code_verifier": "v" * 43,\n',
        THREATS + "identity/test_flow.py::test_a_stolen_code_is_worth_nothing_with_another_state",
        (
            (
                "services/identity/sign_in.py",
                'verifier, nonce = self._derive("verifier", state), ',
                'verifier, nonce = "v" * 43, ',
            ),
        ),
    ),
    Mutant(
        "F-3 removed keys die",
        "services/identity/oidc.py",
        "        if self._now() >= known.until:\n",
        "        if not known.metadata:\n",
        THREATS + "identity/test_id_token_provider.py::test_what_a_provider_takes_back_is_not_believed_any_longer",
    ),
    Mutant(
        "F-3 issuer of the discovery document",
        "services/identity/oidc.py",
        '    if document.get("issuer") != binding.issuer:\n',
        "    if False:\n",
        THREATS + "identity/test_id_token_provider.py::test_what_a_provider_takes_back_is_not_believed_any_longer",
    ),
    Mutant(
        "F-3 place of the discovery document",
        "services/identity/bindings.py",
        "    if binding.discovery_url != ",
        "    if False and binding.discovery_url != ",
        THREATS + "identity/test_bindings.py::test_whoever_manages_a_binding_cannot_be_its_people",
        (
            (
                "services/identity/migrations/0014_derive_discovery.py",
                "    CHECK (discovery_url",
                "    CHECK (true OR discovery_url",
            ),
        ),
    ),
    Mutant(
        "F-3 whose client secret",
        "services/identity/bindings.py",
        '    if not re.fullmatch(rf"kv/idp/{owner}/',
        '    if not re.fullmatch(r"kv/idp/.*|" rf"kv/idp/{owner}/',
        THREATS + "identity/test_bindings.py::test_a_domain_cannot_have_anothers_client_secret_sent_to_itself",
        (
            (
                "services/identity/migrations/0007_pin_bindings.py",
                "        client_secret_ref ~ ('^kv/idp/'",
                "        true OR client_secret_ref ~ ('^kv/idp/'",
            ),
        ),
    ),
    Mutant(
        "F-3 providers inside",
        "services/identity/egress.py",
        "        if not allowed(",
        "        if False and not allowed(",
        THREATS + "identity/test_bindings.py::test_a_provider_cannot_be_inside",
    ),
    Mutant(
        "F-3 people of a deactivated binding",
        "services/identity/binding_store.py",
        "                await end_people(lent, binding_id)\n",
        "                pass\n",
        THREATS + "identity/test_bindings.py::test_a_deactivated_binding_ends_everything_at_once",
    ),
)
