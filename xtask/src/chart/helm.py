# Helm's own engine and the schemas of Kubernetes, for `cargo xtask chart` and its tests: JSON comes in, JSON goes out.
#   lint CHART        {"values": {...}}                        -> ["what it complains about", ...]
#   render CHART      {"values": {...}, "namespace": "...", "first": bool} -> {"files": {"path": "text"}} or {"error": "..."}
#   parse .           {"text": "YAML"}                         -> [objects]
#   validate VERSION  {"objects": [...]}                       -> ["what is not valid", ...]
#   install, upgrade, uninstall CHART {"kubeconfig": "...", "values": {...}, "namespace": "...", "seconds": n} -> {} or {"error": "..."}
import json
import sys


def lint(chart, asked):
    import helm_python

    report = helm_python.lint(chart, asked["values"], strict=True, namespace="undermesh-system")
    return [f"{m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1] + report["errors"]


def render(chart, asked):
    import helm_python

    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(asked["values"])
            first = {"is_install": asked["first"], "is_upgrade": not asked["first"]}
            files = loaded.render(asked["values"], name="undermesh", namespace=asked["namespace"], **first)
    except helm_python.HelmError as error:
        return {"error": str(error)}
    files = {name: text for name, text in files.items() if not name.endswith("NOTES.txt")}
    return {"files": files}


def parse(_, asked):
    import yaml

    return [document for document in yaml.safe_load_all(asked["text"]) if document]


def validate(version, asked):
    import kubernetes_validate

    found = []
    for document in asked["objects"]:
        place = f"{document['kind']} {document['metadata']['name']}"
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{place}: {'.'.join(map(str, error.path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"{place}: Kubernetes {version} has no such kind")
    return found


def release(verb):
    def act(chart, asked):
        import helm_python

        names = {"chart": chart, "name": "undermesh", "values": asked["values"], "namespace": asked["namespace"]}
        waits = {"wait": "watcher", "timeout": asked["seconds"]}
        try:
            with helm_python.Config(kubeconfig_path=asked["kubeconfig"], namespace=asked["namespace"]) as config:
                if verb == "install":
                    config.install(**names, **waits, create_namespace=True)
                elif verb == "upgrade":
                    config.upgrade(**names, **waits)
                else:
                    config.uninstall("undermesh", **waits)
        except helm_python.HelmError as error:
            return {"error": str(error)}
        return {}

    return act


verb, argument = sys.argv[1:]
verbs = {"lint": lint, "render": render, "parse": parse, "validate": validate}
verbs |= {verb: release(verb) for verb in ("install", "upgrade", "uninstall")}
print(json.dumps(verbs[verb](argument, json.load(sys.stdin))))
