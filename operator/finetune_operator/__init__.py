"""The controller: it turns a FineTuneJob into attempts (Kubernetes Jobs), and what they say into status.

What it asks of the API server, and no more; the chart grants exactly this:

    API group             resource                 verbs                               where
    finetune.dev          finetunejobs             get, list, watch                    watched namespaces
    finetune.dev          finetunejobs/status      patch                               watched namespaces
    batch                 jobs                     get, list, watch, create, delete    watched namespaces
    (core)                pods                     list, watch                         watched namespaces
    (core)                persistentvolumeclaims   get, create                         watched namespaces
    (core)                configmaps               get, create, delete                 watched namespaces
    events.k8s.io         events                   create                              watched namespaces
    coordination.k8s.io   leases                   get, create, update                 its own namespace

It reads no Secret, no Namespace and no CustomResourceDefinition (whether its own is established it learns from
discovery, which every authenticated client may read), and sets no finalizer. It reaches trainer pods on their port
`metrics` (9090).
"""
