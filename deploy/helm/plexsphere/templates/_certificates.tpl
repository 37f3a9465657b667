{{- /* One certificate an identity, named by its URI SAN as caller lists and PostgreSQL's roles name it: (list $ name secret weight).
With a weight it is there before the hooks that need it. */ -}}
{{- define "plexsphere.issue" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $weight := index . 3 -}}
{{- $signer := eq $name "assertion" -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: plexsphere-{{ $name }}
  labels: {{- include "plexsphere.labels" (list $root $name "certificate") | nindent 4 }}
  {{- with $weight }}
  annotations: {{- include "plexsphere.hook" . | nindent 4 }}
  {{- end }}
spec:
  secretName: {{ index . 2 }}
  commonName: {{ $name }}
  {{- if $signer }}
  uris: [spiffe://plexsphere/identity/assertion]
  usages: [digital signature]
  privateKey: {algorithm: Ed25519, encoding: PKCS8, rotationPolicy: Always}
  {{- else }}
  uris: [spiffe://plexsphere/{{ $name }}]
  {{- if hasKey $root.Values.services $name }}
  dnsNames: [{{ $name }}, {{ $name }}.{{ $root.Release.Namespace }}.svc]
  usages: [digital signature, server auth, client auth]
  {{- else }}
  usages: [digital signature, client auth]
  {{- end }}
  privateKey: {algorithm: ECDSA, size: 256, encoding: PKCS8, rotationPolicy: Always}
  {{- end }}
  duration: {{ $root.Values.certManager.duration }}
  renewBefore: {{ $root.Values.certManager.renewBefore }}
  issuerRef: {{- toYaml $root.Values.certManager.issuerRef | nindent 4 }}
{{- end }}

{{- /* Never at a rollback: a schema does not go back, and code one release old runs on it. */ -}}
{{- define "plexsphere.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation
{{- end }}

{{- /* Pods stay for `--logs`; what they needed goes with the last of them. */ -}}
{{- define "plexsphere.test" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation{{ if ne . "0" }},hook-succeeded{{ end }}
{{- end }}
