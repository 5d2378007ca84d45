"""A session of the Python client (PyPI: kubernetes) with an API server that stands alone. The kubeconfig is the argument."""

import datetime
import os
import sys
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

NAMESPACE = "session"
GROUP = "fleet.example.com"


def refused(code, call, *args, **named):
    """The call must be answered with this code; the Status comes back."""
    try:
        call(*args, **named)
    except ApiException as error:
        assert error.status == code, f"{error.status} instead of {code}: {error.body}"
        return error
    raise AssertionError(f"it should have been refused with {code}")


def typed(core):
    """Create, read, replace, list in pages, the kinds of patch, and delete."""
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"of": "session"}), data={"k": "1"})
    made = core.create_namespaced_config_map(NAMESPACE, body)
    assert made.metadata.uid and made.data == {"k": "1"}
    assert refused(409, core.create_namespaced_config_map, NAMESPACE, body).reason == "Conflict"
    refused(404, core.read_namespaced_config_map, "none", NAMESPACE)
    invalid = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Not a name"))
    assert "Invalid value" in refused(422, core.create_namespaced_config_map, NAMESPACE, invalid).body

    made.data["k"] = "2"
    replaced = core.replace_namespaced_config_map("a", NAMESPACE, made)
    assert replaced.metadata.resource_version != made.metadata.resource_version
    refused(409, core.replace_namespaced_config_map, "a", NAMESPACE, made)

    for number in range(5):
        name = client.V1ObjectMeta(name=f"page-{number}", labels={"page": "yes"})
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=name))
    pages, token = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="page=yes", limit=2, _continue=token)
        pages.append([item.metadata.name for item in page.items])
        token = page.metadata._continue
        if not token:
            break
    assert [len(page) for page in pages] == [2, 2, 1], pages
    found = core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=page-3")
    assert [item.metadata.name for item in found.items] == ["page-3"]

    # The client chooses the kind of patch by its body.
    patched = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"more": "3"}})
    assert patched.data == {"k": "2", "more": "3"}
    patched = core.patch_namespaced_config_map("a", NAMESPACE, [{"op": "remove", "path": "/data/more"}])
    assert patched.data == {"k": "2"}
    dry = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"k": "9"}}, dry_run="All")
    assert dry.data == {"k": "9"}
    assert core.read_namespaced_config_map("a", NAMESPACE).data == {"k": "2"}

    gone = core.delete_namespaced_config_map("page-0", NAMESPACE, body=client.V1DeleteOptions())
    assert (gone["status"] if isinstance(gone, dict) else gone.status) == "Success", gone
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="page=yes")
    assert not core.list_namespaced_config_map(NAMESPACE, label_selector="page=yes").items


def workloads(core, apps):
    """Defaults, status and scale of a Deployment, bodies as dictionaries, eviction and quantities."""
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "default"}})
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
    made = apps.create_namespaced_deployment(NAMESPACE, {"metadata": {"name": "web"}, "spec": spec})
    assert made.spec.replicas == 1 and made.spec.strategy.rolling_update.max_surge == "25%"
    scale = apps.read_namespaced_deployment_scale("web", NAMESPACE)
    assert (scale.spec.replicas, scale.status.selector) == (1, "app=web")
    scale.spec.replicas = 3
    apps.replace_namespaced_deployment_scale("web", NAMESPACE, scale)
    assert apps.read_namespaced_deployment("web", NAMESPACE).spec.replicas == 3
    status = apps.patch_namespaced_deployment_status("web", NAMESPACE, {"status": {"replicas": 2}})
    assert (status.status.replicas, status.spec.replicas) == (2, 3)
    # A strategic merge patch keeps what it does not name.
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}}}}
    container = apps.patch_namespaced_deployment("web", NAMESPACE, change).spec.template.spec.containers[0]
    assert (container.image, container.env[0].value) == ("i", "1")

    resources = client.V1ResourceRequirements(limits={"cpu": "100m", "memory": "1Gi"})
    container = client.V1Container(name="c", image="i", resources=resources)
    pod = client.V1Pod(metadata=client.V1ObjectMeta(name="p"), spec=client.V1PodSpec(containers=[container]))
    made = core.create_namespaced_pod(NAMESPACE, pod)
    assert made.spec.containers[0].resources.requests == {"cpu": "100m", "memory": "1Gi"}
    assert made.status.qos_class == "Guaranteed"
    assert utils.quantity.parse_quantity(made.spec.containers[0].resources.limits["memory"]) == 2**30
    core.create_namespaced_pod_binding(
        "p", NAMESPACE, {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}, _preload_content=False
    )
    assert core.read_namespaced_pod("p", NAMESPACE).spec.node_name == "n"
    token = core.create_namespaced_service_account_token("default", NAMESPACE, {"spec": {"audiences": []}})
    return token.status.token


def watching(core):
    """A watch from a list's revision sees what follows, in order; an old revision is told to begin anew."""
    seen = []
    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    watcher = watch.Watch()
    ready = threading.Event()

    def follow():
        stream = watcher.stream(
            core.list_namespaced_config_map, NAMESPACE, resource_version=start, timeout_seconds=60, label_selector="w"
        )
        ready.set()
        for event in stream:
            seen.append((event["type"], event["object"].data))
            if event["type"] == "DELETED":
                watcher.stop()

    thread = threading.Thread(target=follow)
    thread.start()
    ready.wait()
    body = {"metadata": {"name": "w", "labels": {"w": ""}}, "data": {"n": "1"}}
    core.create_namespaced_config_map(NAMESPACE, body)
    core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"n": "2"}})
    core.delete_namespaced_config_map("w", NAMESPACE)
    thread.join(60)
    expect = [("ADDED", {"n": "1"}), ("MODIFIED", {"n": "2"}), ("DELETED", {"n": "2"})]
    assert seen == expect, seen

    # From the beginning: what is there comes first.
    first = next(watch.Watch().stream(core.list_namespace, timeout_seconds=30))
    assert first["type"] == "ADDED" and first["object"].kind == "Namespace"
    # With bookmarks the list is streamed.
    kinds = []
    stream = watch.Watch().stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        send_initial_events=True,
        resource_version_match="NotOlderThan",
        allow_watch_bookmarks=True,
        timeout_seconds=30,
    )
    for event in stream:
        kinds.append(event["type"])
        if event["type"] == "BOOKMARK":
            break
    assert kinds == ["ADDED", "BOOKMARK"], kinds


def custom(api, extensions):
    """A custom resource with status and scale, by the client for custom objects."""
    properties = {
        "spec": {"type": "object", "properties": {"masts": {"type": "integer", "minimum": 1}}},
        "status": {"type": "object", "properties": {"sailing": {"type": "boolean"}}},
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.masts", "statusReplicasPath": ".status.m"}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
    }
    names = {"plural": "ships", "singular": "ship", "kind": "Ship", "listKind": "ShipList"}
    spec = {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]}
    extensions.create_custom_resource_definition({"metadata": {"name": f"ships.{GROUP}"}, "spec": spec})
    for _ in range(600):
        crd = extensions.read_custom_resource_definition(f"ships.{GROUP}")
        if any(c.type == "Established" and c.status == "True" for c in crd.status.conditions or []):
            break
        time.sleep(0.1)
    objects = client.CustomObjectsApi(api)
    ship = {"apiVersion": f"{GROUP}/v1", "kind": "Ship", "metadata": {"name": "a"}, "spec": {"masts": 3}}
    where = (GROUP, "v1", NAMESPACE, "ships")
    made = objects.create_namespaced_custom_object(*where, ship)
    assert made["spec"] == {"masts": 3}
    bad = dict(ship, metadata={"name": "b"}, spec={"masts": 0})
    assert "greater than or equal to 1" in refused(422, objects.create_namespaced_custom_object, *where, bad).body
    patched = objects.patch_namespaced_custom_object(*where, "a", {"spec": {"masts": 4}})
    assert patched["spec"] == {"masts": 4}
    status = dict(patched, status={"sailing": True})
    objects.replace_namespaced_custom_object_status(*where, "a", status)
    assert objects.get_namespaced_custom_object(*where, "a")["status"] == {"sailing": True}
    scale = objects.get_namespaced_custom_object_scale(*where, "a")
    assert scale["spec"] == {"replicas": 4} and "selector" not in scale["status"], scale
    event = next(watch.Watch().stream(objects.list_namespaced_custom_object, *where, timeout_seconds=30))
    assert event["object"]["metadata"]["name"] == "a"


def dynamically(api):
    """The dynamic client finds kinds by discovery and applies from the server's side."""
    kinds = dynamic.DynamicClient(api)
    ships = kinds.resources.get(api_version=f"{GROUP}/v1", kind="Ship")
    maps = kinds.resources.get(api_version="v1", kind="ConfigMap")
    assert [ship.metadata.name for ship in ships.get(namespace=NAMESPACE).items] == ["a"]
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "1"}}
    named = {"name": "applied", "namespace": NAMESPACE}
    made = maps.server_side_apply(body=config_map, field_manager="one", **named)
    assert made.metadata.managedFields[0].manager == "one"
    other = dict(config_map, data={"k": "2"})
    try:
        maps.server_side_apply(body=other, field_manager="two", **named)
        raise AssertionError("the field belongs to another manager")
    except dynamic.exceptions.ConflictError as error:
        assert "conflict" in error.summary(), error.summary()
    forced = maps.server_side_apply(body=other, field_manager="two", force_conflicts=True, **named)
    assert forced.data.k == "2"
    merged = maps.patch(body={"data": {"k": None, "l": "3"}}, content_type="application/merge-patch+json", **named)
    assert merged.data.to_dict() == {"l": "3"}
    ships.status.patch(
        body={"status": {"sailing": False}}, name="a", namespace=NAMESPACE, content_type="application/merge-patch+json"
    )
    assert ships.get(name="a", namespace=NAMESPACE).status.sailing is False
    for event in maps.watch(namespace=NAMESPACE, name="applied", timeout=30):
        assert event["object"].data.l == "3"
        break
    maps.delete(**named)


def leading(core):
    """Two candidates: the second leads once the first has let the lease run out."""
    order = []

    def candidate(name, work):
        lock = LeaseLock("leader", NAMESPACE, name)
        settings = electionconfig.Config(
            lock,
            lease_duration=4,
            renew_deadline=3,
            retry_period=1,
            onstarted_leading=work,
            onstopped_leading=None,
        )
        leaderelection.LeaderElection(settings).run()

    first = threading.Thread(target=candidate, args=("one", lambda: order.append("one")), daemon=True)
    first.start()
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=60)
    while not order and datetime.datetime.now() < deadline:
        time.sleep(0.1)
    assert order == ["one"], order
    lease = client.CoordinationV1Api().read_namespaced_lease("leader", NAMESPACE)
    assert lease.spec.holder_identity == "one" and lease.spec.lease_duration_seconds == 4


def rights(settings, token):
    """A ServiceAccount's token is known, and allowed what a role says."""
    own = client.Configuration.get_default_copy()
    own.cert_file = own.key_file = None
    own.api_key = {"authorization": f"Bearer {token}"}
    core = client.CoreV1Api(client.ApiClient(own))
    who = client.AuthenticationV1Api(client.ApiClient(own)).create_self_subject_review({})
    assert who.status.user_info.username == f"system:serviceaccount:{NAMESPACE}:default"
    assert "forbidden" in refused(403, core.list_namespaced_secret, NAMESPACE).body
    roles = client.RbacAuthorizationV1Api(settings)
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
    roles.create_namespaced_role(NAMESPACE, {"metadata": {"name": "r"}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    binding = {"metadata": {"name": "r"}, "subjects": [subject], "roleRef": role}
    roles.create_namespaced_role_binding(NAMESPACE, binding)
    for _ in range(100):
        try:
            core.list_namespaced_secret(NAMESPACE)
            break
        except ApiException as error:
            assert error.status == 403
            time.sleep(0.1)
    else:
        raise AssertionError("the role is not in force")
    refused(403, core.read_namespaced_secret, "none", NAMESPACE)
    own.api_key = {"authorization": "Bearer " + token[:-4] + "AAAA"}
    refused(401, client.CoreV1Api(client.ApiClient(own)).list_namespaced_secret, NAMESPACE)


def main():
    config.load_kube_config(sys.argv[1])
    api = client.ApiClient()
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    assert client.VersionApi(api).get_code().minor == "36"
    assert any(group.name == "apps" for group in client.ApisApi(api).get_api_versions().groups)
    typed(core)
    token = workloads(core, apps)
    watching(core)
    custom(api, client.ApiextensionsV1Api(api))
    dynamically(api)
    leading(core)
    rights(api, token)
    utils.create_from_dict(api, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "u"}}, namespace=NAMESPACE)
    print("the session is over", flush=True)
    # The candidate that leads goes on for as long as the process lives.
    os._exit(0)


main()
