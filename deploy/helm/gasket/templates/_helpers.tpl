{{/* The name of every object. */}}
{{- define "gasket.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "gasket.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gasket.labels" -}}
{{ include "gasket.selector" . }}
app.kubernetes.io/version: {{ include "gasket.tag" . | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gasket.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "gasket.image" -}}
{{ .Values.image.repository }}:{{ include "gasket.tag" . }}
{{- end }}

{{- define "gasket.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "gasket.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end }}

{{/* The Secret that has one of `.Values.secrets`; its key is in the values. Takes (list $ "adminToken"). */}}
{{- define "gasket.secretOf" -}}
{{- $root := index . 0 }}{{ $one := index $root.Values.secrets (index . 1) }}
{{- if $one.secret }}{{ $one.secret }}
{{- else if hasKey $one "value" }}{{ include "gasket.name" $root }}-database
{{- else }}{{ include "gasket.name" $root }}-generated{{ end -}}
{{- end }}

{{/* "true" where schema changes have a URL of their own. */}}
{{- define "gasket.hasMigrationUrl" -}}
{{- with .Values.secrets.migrationDatabaseUrl }}{{ if or .secret .value }}true{{ end }}{{ end -}}
{{- end }}

{{/* Helm reads numbers of a values file as floating point, and would write 33554432 as 3.3554432e+07. */}}
{{- define "gasket.plain" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{/* Rendering fails for what cannot work. */}}
{{- define "gasket.check" -}}
{{- $settings := .Values.settings }}
{{- $replicas := int .Values.replicas }}
{{- if .Values.autoscaling.enabled }}{{ $replicas = int .Values.autoscaling.maxReplicas }}{{ end }}
{{- with .Values.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas is %d, and autoscaling.maxReplicas is %d. Raise the maximum, or lower the minimum." (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- end }}
{{- $made := list "DATABASE_URL" "GASKET_MIGRATION_DATABASE_URL" "GASKET_ADMIN_TOKEN" "GASKET_SECRET_KEY" }}
{{- range .Values.extraEnv }}
{{- if has (trimSuffix "_FILE" .name) $made }}
{{- fail (printf "extraEnv has %s, which the chart sets itself. Name the Secret with it under secrets." .name) }}
{{- end }}
{{- if hasKey $settings .name }}
{{- fail (printf "extraEnv has %s, which settings has too. Set it in settings alone." .name) }}
{{- end }}
{{- end }}
{{- $each := add (int $settings.GASKET_DATABASE_POOL_SIZE) 6 }}
{{- $connections := mul (add $replicas 1) $each }}
{{- if gt $connections (int64 .Values.database.maxConnections) }}
{{- fail (printf "%d replicas, and one more during a rollout, open up to %d connections (%d each), and database.maxConnections is %d. Lower the number of replicas or settings.GASKET_DATABASE_POOL_SIZE, or raise max_connections of the server and database.maxConnections." $replicas $connections $each (int64 .Values.database.maxConnections)) }}
{{- end }}
{{- $least := addf $settings.GASKET_DRAIN_DELAY $settings.GASKET_DRAIN_TIMEOUT 10 }}
{{- if lt (float64 .Values.terminationGracePeriodSeconds) $least }}
{{- fail (printf "terminationGracePeriodSeconds is %d, and must be at least %v: GASKET_DRAIN_DELAY + GASKET_DRAIN_TIMEOUT + 10. Otherwise Kubernetes kills a replica whose requests still run." (int64 .Values.terminationGracePeriodSeconds) $least) }}
{{- end }}
{{- with .Values.secrets.databaseUrl }}
{{- if not (or .secret .value) }}
{{- fail "secrets.databaseUrl is not set. Name a Secret with the URL of the PostgreSQL database (secrets.databaseUrl.secret and .key), or set secrets.databaseUrl.value." }}
{{- end }}
{{- end }}
{{- range $name, $one := .Values.secrets }}
{{- if and $one.secret $one.value }}
{{- fail (printf "secrets.%s has a secret and a value. Set one of them." $name) }}
{{- end }}
{{- end }}
{{- if and .Values.migration.job (not (include "gasket.hasMigrationUrl" .)) }}
{{- fail "migration.job is true, and secrets.migrationDatabaseUrl is not set. Set the URL of a role that may change the schema." }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and .enabled (has (toString .maxUnavailable) (list "0" "0%")) }}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %v: no replica may ever be evicted, and so no node can be drained. Set it to at least 1, or podDisruptionBudget.enabled to false." .maxUnavailable) }}
{{- end }}
{{- end }}
{{- range list "app.kubernetes.io/name" "app.kubernetes.io/instance" }}
{{- if hasKey $.Values.podLabels . }}
{{- fail (printf "podLabels has %s, by which the Deployment finds its pods. Take it out." .) }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) }}
{{- fail "autoscaling.enabled is true, and resources.requests.cpu is not set, of which the target is a percentage." }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled is true, and ingress.hosts is empty. Name at least one host." }}
{{- end }}
{{- end }}

{{/* Variables of a container. Takes (dict "root" $ "migrates" true). */}}
{{- define "gasket.env" -}}
{{- $root := .root }}
- {name: DATABASE_URL_FILE, value: /run/secrets/gasket/database-url}
{{- if and .migrates (include "gasket.hasMigrationUrl" $root) }}
- {name: GASKET_MIGRATION_DATABASE_URL_FILE, value: /run/secrets/gasket/migration-database-url}
{{- end }}
{{- if .serves }}
- {name: GASKET_ADMIN_TOKEN_FILE, value: /run/secrets/gasket/admin-token}
- {name: GASKET_SECRET_KEY_FILE, value: /run/secrets/gasket/secret-key}
{{- end }}
{{- $settings := $root.Values.settings }}
{{- if not .migrates }}{{ $settings = merge (dict "GASKET_MIGRATE_ON_STARTUP" false) $settings }}{{ end }}
{{- range $name, $value := $settings }}
- {name: {{ $name }}, value: {{ include "gasket.plain" $value | quote }}}
{{- end }}
{{- with $root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The files of the variables above. */}}
{{- define "gasket.volumes" -}}
{{- $root := .root }}
{{- $secrets := list (list "databaseUrl" "database-url") }}
{{- if and .migrates (include "gasket.hasMigrationUrl" $root) }}
{{- $secrets = append $secrets (list "migrationDatabaseUrl" "migration-database-url") }}
{{- end }}
{{- if .serves }}
{{- $secrets = concat $secrets (list (list "adminToken" "admin-token") (list "secretKey" "secret-key")) }}
{{- end }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $secrets }}
      {{- $name := index . 0 }}
      - secret:
          name: {{ include "gasket.secretOf" (list $root $name) }}
          items: [{key: {{ index $root.Values.secrets $name "key" | quote }}, path: {{ index . 1 }}}]
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gasket.volumeMounts" -}}
- {name: secrets, mountPath: /run/secrets/gasket, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What the Pod Security Standard "restricted" asks for. The numbers are the image's user. */}}
{{- define "gasket.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "gasket.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What both the Deployment's pods and the Job's have. */}}
{{- define "gasket.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
