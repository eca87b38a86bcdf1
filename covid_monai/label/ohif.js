// SPDX-License-Identifier: Apache-2.0
// OHIF as MONAI Label ships it draws masks, and can neither change nor save them. Appended to its configuration, this
// adds brushes and the list of segments to the left panel, and buttons that save the label and tell of a training.
"use strict";
(() => {
  const MODE = "@ohif/mode-monai-label";
  const SEGMENTS = "@ohif/extension-cornerstone.panelModule.panelSegmentationWithTools";

  // the panel asks port 8000 unless this cookie, which all servers of a host share, tells it another
  document.cookie = `MONAILABEL_SERVER_URL=${encodeURIComponent(`${location.origin}/`)}`;

  const nrrd = ({ dimensions, direction, spacing, origin, voxelManager }) => {
    const vector = (values) => `(${Array.from(values).join(",")})`;
    const axes = [0, 1, 2].map((axis) =>
      vector(direction.slice(3 * axis, 3 * axis + 3).map((part) => part * spacing[axis]))
    );
    const header = [
      "NRRD0004",
      "type: uint8",
      "dimension: 3",
      "space: left-posterior-superior",
      `sizes: ${dimensions.join(" ")}`,
      `space directions: ${axes.join(" ")}`,
      `space origin: ${vector(origin)}`,
      "encoding: raw",
    ];
    return new Blob([`${header.join("\n")}\n\n`, Uint8Array.from(voxelManager.getCompleteScalarDataArray())]);
  };

  const submit = async ({ segmentationService, viewportGridService }) => {
    const active = segmentationService.getActiveSegmentation(viewportGridService.getActiveViewportId());
    const volume = active && segmentationService.getLabelmapVolume(active.segmentationId);
    if (!volume) throw new Error("there is no label in this view: run a model, or draw one.");
    const [image] = active.representationData.Labelmap.referencedImageIds;
    const series = window.cornerstone.metaData.get("instance", image).SeriesInstanceUID;
    const segments = Object.values(active.segments).filter(Boolean);
    const form = new FormData();
    form.append(
      "params",
      JSON.stringify({ label_info: segments.map(({ label, segmentIndex }) => ({ name: label, idx: segmentIndex })) })
    );
    form.append("label", nrrd(volume), "label.nrrd");
    const response = await fetch(`/datastore/label?tag=final&image=${series}`, { method: "PUT", body: form });
    const answer = await response.json().catch(() => ({ detail: `the server answers ${response.status}.` }));
    if (!response.ok) throw new Error(answer.detail);
    const scores = Object.entries(answer.dice ?? {}).map(([name, dice]) => `${name} ${dice.toFixed(2)}`);
    return `The label is saved. ${scores.length ? `Dice with the model's: ${scores.join(", ")}.` : ""}`;
  };

  // the panel's own button tells only that a training was asked for
  const training = async () => {
    const response = await fetch("/train/");
    if (response.status === 404) return "No training was started since the server runs.";
    const { status, details } = await response.json();
    if (status === "DONE") return "The training is done: the next run uses the new model.";
    if (status === "ERROR") throw new Error((details.at(-1) ?? "see the server's output.").replace(/^[\w.]+: /, ""));
    return status === "STOPPED" ? "The training was stopped." : "The training runs.";
  };

  const BUTTONS = [
    { id: "SubmitLabel", label: "Submit label", icon: "icon-upload", answer: submit, fault: "The label is not saved" },
    { id: "Training", label: "Training", icon: "info-action", answer: training, fault: "The training failed" },
  ];

  const command = ({ answer, fault }, services) => async () => {
    const tell = (type, message) =>
      services.uiNotificationService.show({ title: "MONAI Label", type, message, duration: 10000 });
    try {
      tell("success", await answer(services));
    } catch (error) {
      tell("error", `${fault}: ${error.message}`);
    }
  };

  window.config.extensions.push({
    id: "covid-monai",
    getCommandsModule: ({ servicesManager: { services } }) => ({
      defaultContext: "DEFAULT",
      definitions: Object.fromEntries(
        BUTTONS.map((button) => [button.id, { commandFn: command(button, services) }])
      ),
    }),
  });

  window.config.modes.push({
    id: MODE, // the first of a name is taken
    modeFactory: async ({ loadModules, ...rest }) => {
      const [viewing, editing] = (await loadModules([MODE, "@ohif/mode-segmentation"])).map((mode) =>
        mode.modeFactory(rest)
      );
      const [route] = viewing.routes;
      return {
        ...viewing,
        onModeEnter: (managers) => {
          editing.onModeEnter(managers); // tools of the other mode, and those that change segments
          const { toolbarService } = managers.servicesManager.services;
          toolbarService.addButtons(
            BUTTONS.map(({ id, label, icon }) => ({
              id,
              uiType: "ohif.radioGroup",
              props: { icon, label, commands: id, evaluate: "evaluate.action" },
            }))
          );
          toolbarService.createButtonSection("primary", BUTTONS.map(({ id }) => id)); // behind those that are there
        },
        routes: [
          {
            ...route,
            layoutTemplate: (context) => {
              const layout = route.layoutTemplate(context);
              return { ...layout, props: { ...layout.props, leftPanels: [...layout.props.leftPanels, SEGMENTS] } };
            },
          },
        ],
      };
    },
  });
})();
